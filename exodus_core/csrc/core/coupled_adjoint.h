// One step, backward in time, of the neuron of coupled_neuron.h (docs/equations.md, section 8).
//
// P[t] = dL/d(what u[t] was before the lower bound), W[t] = dL/dw[t], I[t] = dL/di[t]. Each step adds what the later one
// hands back along u, s, w and i; dL/dx[t] is I[t], or P[t] where there is no synapse.
#pragma once

#include "adjoint.h"
#include "coupled_neuron.h"
#include "macros.h"

namespace exodus {

// Numbers of METHOD_NUMBERS in arguments.py: as EXODUS, but spikes are constants in the reset.
constexpr Method kDetachedReset = static_cast<Method>(2);

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
  const Real decay = select(later_held > Real(0), Real(1), neuron.alpha);
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
  if (coupling.tied && coupling.adaptation && method != Method::slayer) {
    slopes.by_adaptation = slopes.reset_factor * neuron.adapt_threshold * spikes;
  }
  return slopes;
}

// The gradients that step t receives from t+1, whose values `later` has; adds to the sums what lies between the two.
template <class Real>
struct CoupledReceived {
  Real spikes;
  Real membrane;
  Real adaptation;
};

template <class Real>
EXODUS_HOST_DEVICE CoupledReceived<Real> coupled_received(Method method, const Coupling& coupling, bool with_sums,
                                                          const CoupledNeuron<Real>& neuron, Real membrane, Real spikes,
                                                          Real current, Real adaptation,
                                                          const CoupledAdjoint<Real>& later, CoupledSums<Real>& sums) {
  const CoupledSlopes<Real> slopes =
      coupled_slopes(method, coupling, neuron, membrane, spikes, adaptation, later.held);
  CoupledReceived<Real> received{slopes.by_spikes * later.moved, slopes.direct * later.moved, Real(0)};
  if (coupling.adaptation) {
    if (method != Method::slayer) received.spikes = multiply_add(neuron.adapt_by, later.adaptation, received.spikes);
    received.membrane = multiply_add(neuron.adapt_membrane, later.adaptation, received.membrane);
    received.adaptation = multiply_add(slopes.by_adaptation, later.moved, later.into_adaptation);
  }
  if (with_sums) {
    const Real free = select(later.held > Real(0), Real(0), later.moved);
    const Real by_reset = slopes.reset_factor * spikes;
    sums.add(kOfAlpha, free, slopes.retained);
    sums.add(kOfResetBy, later.moved, by_reset);
    if (coupling.synapse) {
      sums.add(kOfSynapseAlpha, later.current, current);
      if (coupling.delayed) sums.add(kOfSynapseGain, free, current);
    }
    if (coupling.adaptation) {
      sums.add(kOfAdaptAlpha, later.adaptation, adaptation);
      sums.add(kOfAdaptMembrane, later.adaptation, membrane);
      sums.add(kOfAdaptBy, later.adaptation, spikes);
      if (coupling.tied) sums.add(kOfAdaptThreshold, later.moved * by_reset, adaptation);
    }
  }
  return received;
}

// One step: `adjoint` is that of t+1 in, of t out. Returns dL/dx[t].
template <class Real>
EXODUS_HOST_DEVICE Real coupled_adjoint_step(Method method, const Coupling& coupling, bool with_sums,
                                             const CoupledNeuron<Real>& neuron, const CoupledStep<Real>& step,
                                             CoupledAdjoint<Real>& adjoint, CoupledSums<Real>& sums) {
  const CoupledReceived<Real> received = coupled_received(method, coupling, with_sums, neuron, step.membrane, step.spikes,
                                                          step.current, step.adaptation, adjoint, sums);
  const Real grad_spikes = step.grad_spikes + received.spikes;
  const Real fired = step.surrogate * grad_spikes;
  const Real unclipped = fired + (step.grad_membrane + received.membrane);
  const Real moved = select(is_clipped(step.membrane, neuron.min_membrane), Real(0), unclipped);
  const Real free = select(step.held > Real(0), Real(0), moved);
  Real grad_input = free;
  adjoint.moved = moved;
  adjoint.held = step.held;
  if (coupling.synapse) {
    const Real driven = neuron.synapse_gain * free;
    adjoint.current = coupling.delayed ? adjoint.into_current : adjoint.into_current + driven;
    adjoint.into_current = neuron.synapse_alpha * adjoint.current;
    if (coupling.delayed) adjoint.into_current = adjoint.into_current + driven;
    grad_input = adjoint.current;
  }
  if (coupling.adaptation) {
    const Real above = multiply_add(-neuron.adapt_threshold, fired, received.adaptation);
    adjoint.adaptation = multiply_add(-neuron.adapt_current, free, above);
    adjoint.into_adaptation = neuron.adapt_alpha * adjoint.adaptation;
  }
  if (with_sums) {
    sums.of[kOfThreshold] -= fired;
    sums.of[kOfMinMembrane] += unclipped - moved;
    if (coupling.synapse && !coupling.delayed) sums.add(kOfSynapseGain, free, step.current);
    if (coupling.adaptation) {
      sums.add(kOfAdaptCurrent, -free, step.adaptation);
      sums.add(kOfAdaptThreshold, -fired, step.adaptation);
    }
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
  const CoupledReceived<Real> received = coupled_received(method, coupling, true, neuron, initial.membrane,
                                                          initial.spikes, initial.current, initial.adaptation, first, sums);
  return {received.membrane, received.spikes, first.into_current,
          coupling.adaptation ? received.adaptation : first.into_adaptation, Real(0)};
}

}  // namespace exodus
