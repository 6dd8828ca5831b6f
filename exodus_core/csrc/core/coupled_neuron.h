// One step, forward, of a LIF neuron whose membrane is coupled with a synaptic current, an adaptation variable and a
// refractory period (docs/equations.md, section 9).
//
//     i[t] = beta i[t-1] + x[t]                                     the synaptic current
//     w[t] = gamma w[t-1] + a u[t-1] + b s[t-1]                     the adaptation
//     u[t] = alpha u[t-1] + g i[t] - k w[t], and the reset
//     s[t] = f(u[t] - (theta + c w[t]))
//
// Which of them there are is an argument: inlining leaves what the caller knows when it is compiled.
#pragma once

#include "macros.h"
#include "neuron.h"

namespace exodus {

// The parameters, in the order of the operators' list of numbers; COUPLED_PARAMETERS in ops.py has their names.
template <class Real>
struct CoupledNeuron {
  Real alpha;
  Real threshold;
  Real reset_by;  // with Reset::zero, the value that the membrane is reset to
  Real min_membrane;
  Real synapse_alpha;    // beta
  Real synapse_gain;     // g
  Real adapt_alpha;      // gamma
  Real adapt_membrane;   // a
  Real adapt_by;         // b
  Real adapt_current;    // k
  Real adapt_threshold;  // c
};

enum CoupledParameter : int {
  kOfAlpha,
  kOfThreshold,
  kOfResetBy,
  kOfMinMembrane,
  kOfSynapseAlpha,
  kOfSynapseGain,
  kOfAdaptAlpha,
  kOfAdaptMembrane,
  kOfAdaptBy,
  kOfAdaptCurrent,
  kOfAdaptThreshold,
  kCoupledParameters,  // how many there are
};

// Which variables a neuron has, and how they are coupled. Terms whose factor is the number 0 are left out.
struct Coupling {
  bool synapse;
  bool adaptation;
  bool waits;       // there is a refractory period
  bool delayed;     // the membrane sees i[t-1] instead of i[t]
  bool tied;        // a spike subtracts the threshold as the adaptation raises it, theta + c w
  bool senses;      // a w: the adaptation sees the membrane
  bool inhibits;    // k w
  bool raises;      // c w
  Reset reset;
  bool many_spikes;
  std::int64_t bits;  // as the operators take them: the numbers are those of the COUPLING_ constants in ops.py

  static Coupling of(std::int64_t bits, bool waits, Reset reset, double max_spikes) {
    const auto bit = [bits](int which) { return (bits >> which & 1) != 0; };
    return {bit(0), bit(1), waits, bit(2), bit(3), bit(4), bit(5), bit(6), reset, max_spikes > 1, bits};
  }
};

// The state, one element a lane; COUPLED_STATES in ops.py has the names in this order.
template <class Real>
struct CoupledState {
  Real membrane;
  Real spikes;
  Real current;
  Real adaptation;
  Real waiting;  // steps of the refractory period that are left
};

enum CoupledStateRow : int { kMembraneRow, kSpikesRow, kCurrentRow, kAdaptationRow, kWaitingRow, kCoupledStates };

// What a spike subtracts.
template <class Real>
EXODUS_HOST_DEVICE Real subtracted(const Coupling& coupling, const CoupledNeuron<Real>& neuron, Real adaptation) {
  return coupling.tied ? neuron.threshold + neuron.adapt_threshold * adaptation : neuron.reset_by;
}

// Factor of alpha in the next step; as `retained` of neuron.h, with a value to be reset to.
template <class Real>
EXODUS_HOST_DEVICE Real coupled_retained(const Coupling& coupling, const CoupledNeuron<Real>& neuron, Real membrane,
                                         Real spikes, Real subtract) {
  switch (coupling.reset) {
    case Reset::subtract_decayed:
      return membrane - subtract * spikes;
    case Reset::zero:
      return membrane * (Real(1) - spikes) + neuron.reset_by * spikes;
    default:
      return membrane;
  }
}

template <class Real>
EXODUS_HOST_DEVICE Real adapted_threshold(const Coupling& coupling, const CoupledNeuron<Real>& neuron, Real adaptation) {
  return coupling.raises ? neuron.threshold + neuron.adapt_threshold * adaptation : neuron.threshold;
}

// The values of a step as Storage holds them.
template <class Real>
struct CoupledStored {
  Real membrane;
  Real adaptation;
  Real held;  // 1 in the refractory period, else 0
};

// The adaptation from that of t-1 to that of t; membrane and spikes are those of t-1.
template <class Real>
EXODUS_HOST_DEVICE void adapt(const Coupling& coupling, const CoupledNeuron<Real>& neuron, Real membrane,
                              CoupledState<Real>& state) {
  if (!coupling.adaptation) return;
  const Real before = unless_faded(state.adaptation, neuron.adapt_alpha);
  Real adaptation = neuron.adapt_alpha * before;
  if (coupling.senses) adaptation = adaptation + neuron.adapt_membrane * membrane;
  state.adaptation = adaptation + neuron.adapt_by * state.spikes;
}

// The spikes of t, and the steps of the refractory period that are left after it.
template <class Real>
EXODUS_HOST_DEVICE void fire_or_wait(const Coupling& coupling, const CoupledNeuron<Real>& neuron, Real max_spikes,
                                     Real refractory, const CoupledStored<Real>& stored, CoupledState<Real>& state) {
  state.spikes = fire(coupling.many_spikes, stored.membrane,
                      adapted_threshold(coupling, neuron, stored.adaptation), max_spikes);
  if (!coupling.waits) return;
  const auto waits = state.waiting > Real(0);
  state.spikes = select(waits, Real(0), state.spikes);
  const Real left = select(waits, state.waiting - Real(1), Real(0));
  state.waiting = select(state.spikes > Real(0), refractory, left);
}

// One step: `state` is that of t-1 in, of t out. The spike decision is taken on what is stored, as in lif_step. In the
// refractory period the membrane keeps the value that it has after the reset, and no spike is fired.
template <class Storage, class Real>
EXODUS_HOST_DEVICE CoupledStored<Real> coupled_step(const Coupling& coupling, const CoupledNeuron<Real>& neuron,
                                                    Real max_spikes, Real refractory, Real input,
                                                    CoupledState<Real>& state) {
  const Real membrane = unless_faded(state.membrane, neuron.alpha);
  Real drive = input;
  if (coupling.synapse) {
    const Real before = unless_faded(state.current, neuron.synapse_alpha);
    const Real current = neuron.synapse_alpha * before + input;
    // No choice between two variables: it would be one of their addresses, and keep the state in memory.
    drive = neuron.synapse_gain * current;
    if (coupling.delayed) drive = neuron.synapse_gain * before;
    state.current = current;
  }
  const Real subtract = subtracted(coupling, neuron, state.adaptation);
  adapt(coupling, neuron, membrane, state);
  const Real retained = coupled_retained(coupling, neuron, membrane, state.spikes, subtract);
  Real moved = neuron.alpha * retained + drive;
  Real kept = retained;
  if (coupling.reset == Reset::subtract) {
    moved = moved - subtract * state.spikes;
    kept = kept - subtract * state.spikes;
  }
  if (coupling.inhibits) moved = moved - neuron.adapt_current * state.adaptation;
  const auto waits = state.waiting > Real(0);
  if (coupling.waits) moved = select(waits, kept, moved);
  state.membrane = clip(moved, neuron.min_membrane);
  const CoupledStored<Real> stored{as_stored<Storage>(state.membrane), as_stored<Storage>(state.adaptation),
                                   select(waits, Real(1), Real(0))};
  fire_or_wait(coupling, neuron, max_spikes, refractory, stored, state);
  return stored;
}

// One step of a membrane that is known, as `coupled_step` stored it: the other variables follow from it, but for the current,
// to the bit unless the adaptation senses a membrane that is rounded where it is stored. `state` is that of t-1 in, of t out.
template <class Storage, class Real>
EXODUS_HOST_DEVICE CoupledStored<Real> coupled_trace_step(const Coupling& coupling, const CoupledNeuron<Real>& neuron,
                                                          Real max_spikes, Real refractory, Real membrane,
                                                          CoupledState<Real>& state) {
  adapt(coupling, neuron, unless_faded(state.membrane, neuron.alpha), state);
  state.membrane = membrane;
  const CoupledStored<Real> stored{membrane, as_stored<Storage>(state.adaptation),
                                   select(state.waiting > Real(0), Real(1), Real(0))};
  fire_or_wait(coupling, neuron, max_spikes, refractory, stored, state);
  return stored;
}

}  // namespace exodus
