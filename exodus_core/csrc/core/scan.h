// The backward pass as a chain of affine maps, for computing chunks of time in parallel (docs/equations.md, section 7).
#pragma once

#include "adjoint.h"
#include "macros.h"

namespace exodus {

// lam -> slope lam + offset. The identity, (1, 0), is what a piece without steps contributes.
template <class Real>
struct AffineMap {
  Real slope;
  Real offset;

  EXODUS_HOST_DEVICE Real operator()(Real later) const { return multiply_add(slope, later, offset); }

  // True if the product of slopes stayed finite; an infinite one times lam = 0 would be NaN where the steps give 0.
  EXODUS_HOST_DEVICE bool is_bounded() const { return slope - slope == Real(0); }
};

// The map of a step after `behind`, that of the steps behind it in time: lam[t] = a lam[t+1] + b, a = m (b + c f'),
// or a = 0 where a bound after the reset cuts lam[t+1] off. The step is that of lif_adjoint_step, which keeps dL/ds apart
// and so rounds in another order.
template <class Real>
EXODUS_HOST_DEVICE AffineMap<Real> before(Method method, Reset reset, bool bound_after_reset,
                                          const LifNeuron<Real>& neuron, const LifStep<Real>& step,
                                          const AffineMap<Real>& behind) {
  if (!bound_after_reset && is_clipped(step.membrane, neuron.min_membrane)) return {Real(0), Real(0)};
  const Real a = multiply_add(through_spikes(method, reset, neuron, step.membrane), step.surrogate,
                              direct(method, reset, neuron.alpha, step.spikes));
  const Real b = multiply_add(step.surrogate, step.grad_spikes, step.grad_membrane);
  if (bound_after_reset &&
      is_clipped(left_by_reset(reset, neuron, step.membrane, step.spikes), neuron.min_membrane)) {
    return {Real(0), b};
  }
  return {a * behind.slope, multiply_add(a, behind.offset, b)};
}

}  // namespace exodus
