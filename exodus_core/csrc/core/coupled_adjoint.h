// One step, backward in time, of the neuron of coupled_neuron.h (docs/equations.md, section 9).
//
// P[t] = dL/d(what u[t] was before the lower bound), W[t] = dL/dw[t], I[t] = dL/di[t]. Each step adds what the later one
// hands back along u, s, w and i; dL/dx[t] is I[t], or P[t] where there is no synapse.
#pragma once

#include "adjoint.h"
#include "coupled_neuron.h"
#include "macros.h"

namespace exodus {

// The data of a step that do not depend on later steps.
template <class Real>
struct CoupledStep {
  Real membrane;
  Real spikes;
  Real current;     // read for the sums
  Real adaptation;
  Real held;        // 1 in the refractory period, else 0
  Real surrogate;   // f'[t]; 0 in the refractory period
  Real grad_spikes;
  Real grad_membrane;
};

// What the step after hands back.
template <class Real>
struct CoupledAdjoint {
  Real moved;            // P[t+1]
  Real adaptation;       // W[t+1]
  Real current;          // I[t+1]
  Real held;             // 1 if step t+1 lies in the refractory period, else 0
  Real into_adaptation;  // dL/dw[t] along w[t+1]
  Real into_current;     // dL/di[t] along i[t+1], and along u[t+1] if the membrane sees i late
};

// Sums over time of the parameter gradients of one neuron, in the order of CoupledParameter. Of a threshold that spikes
// subtract, `reset_by` has the second part.
template <class Real>
struct CoupledSums {
  Real of[kCoupledParameters];

  EXODUS_HOST_DEVICE void add(CoupledParameter which, Real a, Real b) { of[which] = multiply_add(a, b, of[which]); }
};

// The partial derivatives of P's variable at t+1 by those at t, for the method.
template <class Real>
struct CoupledSlopes {
  Real by_spikes;
  Real direct;         // by u[t]
  Real by_adaptation;  // of a subtracted threshold
  Real reset_factor;   // by reset_by, over s[t]
  Real retained;       // by alpha
};

template <class Real>
EXODUS_HOST_DEVICE CoupledSlopes<Real> coupled_slopes(Method method, const Coupling& coupling,
                                                      const CoupledNeuron<Real>& neuron, Real membrane, Real spikes,
                                                      Real adaptation, Real later_held) {
  const Real subtract = subtracted(coupling, neuron, adaptation);
  Real decay = neuron.alpha;
  if (coupling.waits) decay = select(later_held > Real(0), Real(1), decay);
  CoupledSlopes<Real> slopes{Real(0), decay, Real(0), Real(0),
                             coupled_retained(coupling, neuron, membrane, spikes, subtract)};
  const bool exact = differentiates_reset(method);
  switch (coupling.reset) {
    case Reset::subtract:
      slopes.reset_factor = Real(-1);
      if (exact) slopes.by_spikes = -subtract;
      break;
    case Reset::subtract_decayed:
      slopes.reset_factor = -decay;
      if (exact) slopes.by_spikes = -decay * subtract;
      break;
    case Reset::zero:
      slopes.reset_factor = decay;
      if (exact) slopes.by_spikes = decay * (neuron.reset_by - membrane);
      if (method != Method::slayer) slopes.direct = decay * (Real(1) - spikes);
      break;
    default:
      break;
  }
  if (coupling.tied && method != Method::slayer) {
    slopes.by_adaptation = slopes.reset_factor * neuron.adapt_threshold * spikes;
  }
  return slopes;
}

// The gradients of step t with what it receives from t+1, whose values `later` has.
template <class Real>
struct CoupledReceived {
  Real spikes;      // dL/ds[t]
  Real membrane;    // dL/du[t] but for the path through s[t]
  Real adaptation;  // dL/dw[t] but for the paths through s[t] and u[t]
};

// From the gradients by direct paths; adds to the sums what lies between the two steps.
template <class Real>
EXODUS_HOST_DEVICE CoupledReceived<Real> coupled_received(Method method, const Coupling& coupling, bool with_sums,
                                                          const CoupledNeuron<Real>& neuron, Real membrane, Real spikes,
                                                          Real current, Real adaptation, Real grad_spikes,
                                                          Real grad_membrane, const CoupledAdjoint<Real>& later,
                                                          CoupledSums<Real>& sums) {
  const CoupledSlopes<Real> slopes =
      coupled_slopes(method, coupling, neuron, membrane, spikes, adaptation, later.held);
  CoupledReceived<Real> received{multiply_add(slopes.by_spikes, later.moved, grad_spikes),
                                 multiply_add(slopes.direct, later.moved, grad_membrane), later.into_adaptation};
  if (coupling.adaptation) {
    if (method != Method::slayer) received.spikes = multiply_add(neuron.adapt_by, later.adaptation, received.spikes);
    if (coupling.senses) received.membrane = multiply_add(neuron.adapt_membrane, later.adaptation, received.membrane);
    if (coupling.tied) received.adaptation = multiply_add(slopes.by_adaptation, later.moved, received.adaptation);
  }
  if (with_sums) {
    Real free = later.moved;
    if (coupling.waits) free = select(later.held > Real(0), Real(0), free);
    const Real by_reset = slopes.reset_factor * spikes;
    sums.add(kOfAlpha, free, slopes.retained);
    sums.add(kOfResetBy, later.moved, by_reset);
    if (coupling.synapse) {
      sums.add(kOfSynapseAlpha, later.current, current);
      if (coupling.delayed) sums.add(kOfSynapseGain, free, current);
    }
    if (coupling.adaptation) {
      sums.add(kOfAdaptAlpha, later.adaptation, adaptation);
      if (coupling.senses) sums.add(kOfAdaptMembrane, later.adaptation, membrane);
      sums.add(kOfAdaptBy, later.adaptation, spikes);
      if (coupling.tied) sums.add(kOfAdaptThreshold, later.moved * by_reset, adaptation);
    }
  }
  return received;
}

// One step: `adjoint` is that of t+1 in, of t out. Returns dL/dx[t]. Fused multiply-adds keep the way from one step to the
// next short: it is what a pass waits for.
template <class Real>
EXODUS_HOST_DEVICE Real coupled_adjoint_step(Method method, const Coupling& coupling, bool with_sums,
                                             const CoupledNeuron<Real>& neuron, const CoupledStep<Real>& step,
                                             CoupledAdjoint<Real>& adjoint, CoupledSums<Real>& sums) {
  const CoupledReceived<Real> received =
      coupled_received(method, coupling, with_sums, neuron, step.membrane, step.spikes, step.current, step.adaptation,
                       step.grad_spikes, step.grad_membrane, adjoint, sums);
  const Real unclipped = multiply_add(step.surrogate, received.spikes, received.membrane);
  const Real moved = select(is_clipped(step.membrane, neuron.min_membrane), Real(0), unclipped);
  Real free = moved;
  if (coupling.waits) free = select(step.held > Real(0), Real(0), free);
  Real grad_input = free;
  adjoint.moved = moved;
  adjoint.held = step.held;
  if (coupling.synapse) {
    Real current = adjoint.into_current;
    if (!coupling.delayed) current = multiply_add(neuron.synapse_gain, free, current);
    Real into_current = neuron.synapse_alpha * current;
    if (coupling.delayed) into_current = multiply_add(neuron.synapse_gain, free, into_current);
    adjoint.current = current;
    adjoint.into_current = into_current;
    grad_input = current;
  }
  if (coupling.adaptation) {
    Real adapted = received.adaptation;
    if (coupling.raises) adapted = multiply_add(-neuron.adapt_threshold * step.surrogate, received.spikes, adapted);
    if (coupling.inhibits) adapted = multiply_add(-neuron.adapt_current, free, adapted);
    adjoint.adaptation = adapted;
    adjoint.into_adaptation = neuron.adapt_alpha * adapted;
  }
  if (with_sums) {
    const Real fired = step.surrogate * received.spikes;
    sums.of[kOfThreshold] -= fired;
    sums.of[kOfMinMembrane] += unclipped - moved;
    if (coupling.synapse && !coupling.delayed) sums.add(kOfSynapseGain, free, step.current);
    if (coupling.inhibits) sums.add(kOfAdaptCurrent, -free, step.adaptation);
    if (coupling.raises) sums.add(kOfAdaptThreshold, -fired, step.adaptation);
  }
  return grad_input;
}

// The step from t = -1, whose state is given, to t = 0: closes the sums. Returns dL/d(initial state); that of the
// refractory steps left is 0. A variable that the neuron does not have is handed through.
template <class Real>
EXODUS_HOST_DEVICE CoupledState<Real> coupled_adjoint_initial(Method method, const Coupling& coupling,
                                                              const CoupledNeuron<Real>& neuron,
                                                              const CoupledState<Real>& initial,
                                                              const CoupledAdjoint<Real>& first,
                                                              CoupledSums<Real>& sums) {
  const CoupledReceived<Real> received =
      coupled_received(method, coupling, true, neuron, initial.membrane, initial.spikes, initial.current,
                       initial.adaptation, Real(0), Real(0), first, sums);
  return {received.membrane, received.spikes, first.into_current, received.adaptation, Real(0)};
}

}  // namespace exodus
