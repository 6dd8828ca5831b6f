// One step of one neuron, backward in time (docs/equations.md, section 3; equations 13 to 16 of arXiv 2205.10242).
//
// u[t+1] depends on u[t] directly and through the spikes s[t]. With b and c the two partial derivatives,
//     dL/ds[t] = g[t] + c lam[t+1]
//     lam[t]   = f'[t] dL/ds[t] + h[t] + b lam[t+1]
// which is lam[t] = f'[t] g[t] + h[t] + a[t] lam[t+1] with a = b + c f'. Keeping dL/ds apart gives dL/dtheta for nothing.
// `propagate` computes what comes from step t+1, `step_back` the rest.
#pragma once

#include "macros.h"
#include "neuron.h"

namespace exodus {

// EXODUS follows the spikes through the reset; SLAYER drops the reset: b = alpha, c = 0 whatever it is.
enum class Method : std::int64_t { exodus = 0, slayer = 1 };

// c = d u[t+1] / d s[t]
template <Method method, Reset reset, class Real>
EXODUS_HOST_DEVICE Real through_spikes(Real alpha, Real reset_by, Real membrane) {
  if constexpr (method == Method::slayer || reset == Reset::none) {
    return Real(0);
  } else if constexpr (reset == Reset::subtract) {
    return -reset_by;
  } else if constexpr (reset == Reset::subtract_decayed) {
    return -alpha * reset_by;
  } else {
    return -alpha * membrane;
  }
}

// b = d u[t+1] / d u[t] at fixed s[t]
template <Method method, Reset reset, class Real>
EXODUS_HOST_DEVICE Real direct(Real alpha, Real spikes) {
  if constexpr (method == Method::exodus && reset == Reset::zero) {
    return alpha * (Real(1) - spikes);
  } else {
    return alpha;
  }
}

// d u[t+1] / d rho
template <Reset reset, class Real>
EXODUS_HOST_DEVICE Real by_reset(Real alpha, Real spikes) {
  if constexpr (reset == Reset::subtract) {
    return -spikes;
  } else if constexpr (reset == Reset::subtract_decayed) {
    return -alpha * spikes;
  } else {
    return Real(0);
  }
}

// dL/du[t+1] = lam[t+1] sent to everything that u[t+1] is computed from: what step t and the parameters get of it.
template <class Real>
struct Propagated {
  Real membrane;
  Real spikes;
  Real alpha;
  Real reset_by;
};

template <Method method, Reset reset, class Real>
EXODUS_HOST_DEVICE Propagated<Real> propagate(Real later, Real membrane, Real spikes, Real alpha, Real reset_by) {
  return {direct<method, reset>(alpha, spikes) * later, through_spikes<method, reset>(alpha, reset_by, membrane) * later,
          retained<reset>(membrane, spikes, reset_by) * later, by_reset<reset>(alpha, spikes) * later};
}

// lam[t], and what step t adds to dL/dtheta and to the gradient of the lower bound.
template <class Real>
struct StepBack {
  Real adjoint;
  Real threshold;
  Real min_membrane;
};

// `by_membrane` and `by_spikes` are what the later steps send back to u[t] and s[t]. An SRM neuron's membrane reaches
// them through its spikes alone: by_membrane = 0, and adjoint is delta[t].
template <class Real>
EXODUS_HOST_DEVICE StepBack<Real> step_back(Real surrogate, Real grad_spikes, Real grad_membrane, Real by_membrane,
                                            Real by_spikes, bool clipped) {
  const Real by_surrogate = surrogate * (grad_spikes + by_spikes);
  const Real unclipped = by_surrogate + grad_membrane + by_membrane;
  return {clipped ? Real(0) : unclipped, -by_surrogate, clipped ? unclipped : Real(0)};
}

}  // namespace exodus
