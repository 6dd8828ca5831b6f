// One step of one neuron, backward in time (docs/equations.md, section 3; equations 13 to 16 of arXiv 2205.10242).
//
// u[t+1] depends on u[t] directly and through the spikes s[t]. With b and c the two partial derivatives,
//     dL/ds[t] = g[t] + c lam[t+1]
//     lam[t]   = f'[t] dL/ds[t] + h[t] + b lam[t+1]
// which is lam[t] = f'[t] g[t] + h[t] + a[t] lam[t+1] with a = b + c f'. Keeping dL/ds apart gives dL/dtheta for nothing.
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

}  // namespace exodus
