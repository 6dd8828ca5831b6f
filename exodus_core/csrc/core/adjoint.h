// One step of one neuron, backward in time (docs/equations.md, section 3; equations 13 to 16 of arXiv 2205.10242).
//
// u[t+1] depends on u[t] directly and through the spikes s[t]. With b and c the two partial derivatives,
//     dL/ds[t] = g[t] + c lam[t+1]
//     lam[t]   = f'[t] dL/ds[t] + h[t] + b lam[t+1]
// which is lam[t] = f'[t] g[t] + h[t] + a[t] lam[t+1] with a = b + c f'. Keeping dL/ds apart gives dL/dtheta for nothing.
// A bound after the reset cuts off lam[t+1] where what the reset has left lies on it.
#pragma once

#include "macros.h"
#include "neuron.h"

namespace exodus {

// EXODUS differentiates the reset, SLAYER drops it; with a detached reset, which coupled_adjoint.h has, spikes are
// constants in it. The numbers are those of METHOD_NUMBERS and DETACHED_RESET in arguments.py.
enum class Method : std::int64_t { exodus = 0, slayer = 1, detached_reset = 2 };

EXODUS_HOST_DEVICE bool differentiates_reset(Method method) { return method == Method::exodus; }

// The reset that b and c see.
EXODUS_HOST_DEVICE Reset differentiated(Method method, Reset reset) {
  return differentiates_reset(method) ? reset : Reset::none;
}

// c = d u[t+1] / d s[t]
template <class Real>
EXODUS_HOST_DEVICE Real through_spikes(Method method, Reset reset, const LifNeuron<Real>& neuron, Real membrane) {
  if (!differentiates_reset(method)) return Real(0);
  switch (reset) {
    case Reset::subtract:
      return -neuron.reset_by;
    case Reset::subtract_decayed:
      return -neuron.alpha * neuron.reset_by;
    case Reset::zero:
      return -neuron.alpha * membrane;
    default:
      return Real(0);
  }
}

// b = d u[t+1] / d u[t] at fixed s[t]
template <class Real>
EXODUS_HOST_DEVICE Real direct(Method method, Reset reset, Real alpha, Real spikes) {
  return differentiates_reset(method) && reset == Reset::zero ? alpha * (Real(1) - spikes) : alpha;
}

// dL/drho from the sum of lam[t+1] s[t].
template <class Real>
EXODUS_HOST_DEVICE Real by_reset(Reset reset, Real alpha, Real sum) {
  switch (reset) {
    case Reset::subtract:
      return -sum;
    case Reset::subtract_decayed:
      return -alpha * sum;
    default:
      return Real(0);
  }
}

// dL/dmin from the sum of the cut off lam: `alpha` stands between a bound after the reset and u[t+1] unless the reset
// follows the decay.
template <class Real>
EXODUS_HOST_DEVICE Real by_bound(bool bound_after_reset, Reset reset, Real alpha, Real sum) {
  return bound_after_reset && reset != Reset::subtract ? alpha * sum : sum;
}

// The data of a step that do not depend on later steps.
template <class Real>
struct LifStep {
  Real membrane;
  Real spikes;         // read for a reset to zero, for a bound after the reset, and for the sums
  Real surrogate;      // f'[t]
  Real grad_spikes;    // g[t]
  Real grad_membrane;  // h[t]
};

// Sums over time of the parameter gradients of one neuron.
template <class Real>
struct LifSums {
  Real alpha;
  Real threshold;
  Real reset_by;      // of lam[t+1] s[t], for by_reset
  Real min_membrane;  // of what the bound has cut off, for by_bound

  template <class Part>
  EXODUS_HOST_DEVICE LifSums& operator+=(const LifSums<Part>& part) {
    alpha += part.alpha;
    threshold += part.threshold;
    reset_by += part.reset_by;
    min_membrane += part.min_membrane;
    return *this;
  }
};

// The rows of lane_gradients, one element a lane; LANE_GRADIENTS in ops.py has their names in this order.
enum LaneGradient : int {
  kInitialMembrane,
  kInitialSpikes,
  kAlpha,
  kThreshold,
  kResetBy,
  kMinMembrane,
  kLaneGradients,  // how many there are
};

// The partial derivatives of u[t+1] by the step before.
template <class Real>
struct LifSlopes {
  Real by_spikes;  // c
  Real direct;     // b
};

template <class Real>
EXODUS_HOST_DEVICE LifSlopes<Real> lif_slopes(Method method, Reset reset, const LifNeuron<Real>& neuron, Real membrane,
                                              Real spikes) {
  return {through_spikes(method, reset, neuron, membrane), direct(method, reset, neuron.alpha, spikes)};
}

// The part of lam[t+1] that passes a bound after the reset of step t.
template <class Real>
EXODUS_HOST_DEVICE Real unless_cut(bool bound_after_reset, Reset reset, const LifNeuron<Real>& neuron, Real membrane,
                                   Real spikes, Real later) {
  if (!bound_after_reset) return later;
  return select(is_clipped(left_by_reset(reset, neuron, membrane, spikes), neuron.min_membrane), Real(0), later);
}

// The term of dL/dalpha from t to t+1, added to `sum`; `passed` is what unless_cut gives. With a reset before the decay,
// alpha decays the bound where that is what is left.
template <class Real>
EXODUS_HOST_DEVICE Real plus_by_alpha(bool bound_after_reset, Reset reset, const LifNeuron<Real>& neuron, Real membrane,
                                      Real spikes, Real later, Real passed, Real sum) {
  const Real left = retained(reset, membrane, spikes, neuron.reset_by);
  if (!bound_after_reset || reset == Reset::subtract) return multiply_add(passed, left, sum);
  return multiply_add(later, clip(left, neuron.min_membrane), sum);
}

// lam[t] from lam[t+1], which is `later`. With sums, adds what the step from t to t+1 contributes. Not bounded: there is
// no lower bound that u[t] could lie on. `before` in scan.h composes the same step as a map, which rounds in another
// order: a serial pass must not depend on how others cut time into chunks, so both are written out.
template <class Real>
EXODUS_HOST_DEVICE Real lif_adjoint_step(Reset reset, const LifSlopes<Real>& slopes, bool with_sums, bool bounded,
                                         bool bound_after_reset, const LifNeuron<Real>& neuron,
                                         const LifStep<Real>& step, Real later, LifSums<Real>& sums) {
  const Real passed = unless_cut(bound_after_reset, reset, neuron, step.membrane, step.spikes, later);
  const Real grad_spikes = multiply_add(slopes.by_spikes, passed, step.grad_spikes);
  const Real passed_on = multiply_add(slopes.direct, passed, step.grad_membrane);
  const Real unclipped = multiply_add(step.surrogate, grad_spikes, passed_on);
  const Real now =
      bounded ? select(is_clipped(step.membrane, neuron.min_membrane), Real(0), unclipped) : unclipped;
  if (with_sums) {
    sums.alpha = plus_by_alpha(bound_after_reset, reset, neuron, step.membrane, step.spikes, later, passed, sums.alpha);
    sums.threshold = multiply_add(-step.surrogate, grad_spikes, sums.threshold);
    sums.reset_by = multiply_add(passed, step.spikes, sums.reset_by);
    if (bounded) sums.min_membrane += unclipped - now;
    if (bound_after_reset) sums.min_membrane += later - passed;
  }
  return now;
}

template <class Real>
EXODUS_HOST_DEVICE Real lif_adjoint_step(Method method, Reset reset, bool with_sums, bool bounded,
                                         bool bound_after_reset, const LifNeuron<Real>& neuron,
                                         const LifStep<Real>& step, Real later, LifSums<Real>& sums) {
  const LifSlopes<Real> slopes = lif_slopes(method, reset, neuron, step.membrane, step.spikes);
  return lif_adjoint_step(reset, slopes, with_sums, bounded, bound_after_reset, neuron, step, later, sums);
}

template <class Real>
struct LifInitialGradient {
  Real membrane;  // dL/du[-1]
  Real spikes;    // dL/ds[-1]
};

// The step from t = -1, whose membrane and spikes are given, to t = 0, where lam is `first`: closes the sums.
template <class Real>
EXODUS_HOST_DEVICE LifInitialGradient<Real> lif_adjoint_initial(Method method, Reset reset, bool bound_after_reset,
                                                                const LifNeuron<Real>& neuron, Real membrane,
                                                                Real spikes, Real first, LifSums<Real>& sums) {
  const Real passed = unless_cut(bound_after_reset, reset, neuron, membrane, spikes, first);
  sums.alpha = plus_by_alpha(bound_after_reset, reset, neuron, membrane, spikes, first, passed, sums.alpha);
  sums.reset_by += passed * spikes;
  sums.min_membrane += first - passed;
  return {direct(method, reset, neuron.alpha, spikes) * passed,
          through_spikes(method, reset, neuron, membrane) * passed};
}

// delta[n] of an SRM neuron (the transpose of 22) from `reset`, the sum over j of nu[j] delta[n+1+j].
template <class Real>
EXODUS_HOST_DEVICE Real srm_adjoint_step(Real surrogate, Real grad_spikes, Real grad_membrane, Real reset,
                                         Real& threshold_sum) {
  const Real all_grad_spikes = grad_spikes + reset;
  threshold_sum = multiply_add(-surrogate, all_grad_spikes, threshold_sum);
  return multiply_add(surrogate, all_grad_spikes, grad_membrane);
}

}  // namespace exodus
