// The row kernels of neurons whose membrane is coupled with other variables, included by kernels_impl.h for each
// instruction set. Their walk over vectors and steps is that of lif_kernels.h.

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

template <class Storage, class Scalar>
EXODUS_HOST_DEVICE CoupledNeuron<VecOf<Storage>> coupled_neuron_at(const CoupledRows<Scalar>& rows, std::int64_t lane) {
  using Real = VecOf<Storage>;
  const auto read = [&](CoupledParameter which) { return at<Real>(rows.of[which], lane); };
  return {read(kOfAlpha),       read(kOfThreshold),     read(kOfResetBy),
          as_stored<Storage>(read(kOfMinMembrane)),      read(kOfSynapseAlpha), read(kOfSynapseGain),
          read(kOfAdaptAlpha),  read(kOfAdaptMembrane), read(kOfAdaptBy),
          read(kOfAdaptCurrent), read(kOfAdaptThreshold)};
}

// The rows of an output that a vector writes, if it is given.
template <class Storage>
struct VecRows {
  bool given;
  VecStore<Storage> store;
  Prefetch<Storage> next;

  EXODUS_HOST_DEVICE VecRows(const RowBlock<Storage>& rows, bool given, std::int64_t step, std::int64_t later,
                             std::int64_t lane)
      : given(given), store(rows, lane), next(rows, step, later, lane) {}
  EXODUS_HOST_DEVICE void forward(std::int64_t step, VecOf<Storage> values) {
    if (!given) return;
    if (!store.streamed) next.forward();
    store(step, values);
  }
  EXODUS_HOST_DEVICE void backward(std::int64_t step, VecOf<Storage> values) {
    if (!store.streamed) next.backward();
    store(step, values);
  }
};

// The rows of an input that a vector reads; zeros if it is not given.
template <class Storage>
struct VecInput {
  const RowBlock<const Storage> rows;
  std::int64_t lane;
  bool given;
  Prefetch<const Storage> next;

  EXODUS_HOST_DEVICE VecInput(const RowBlock<const Storage>& rows, bool given, std::int64_t step, std::int64_t later,
                              std::int64_t lane)
      : rows(rows), lane(lane), given(given), next(rows, step, later, lane) {}
  EXODUS_HOST_DEVICE VecOf<Storage> forward(std::int64_t step) {
    next.forward();
    return load_lanes<VecOf<Storage>>(rows[step] + lane);
  }
  EXODUS_HOST_DEVICE VecOf<Storage> backward(std::int64_t step) {
    if (!given) return VecOf<Storage>(0);
    next.backward();
    return load_lanes<VecOf<Storage>>(rows[step] + lane);
  }
};

template <bool synapse, bool adaptation, class Storage>
void coupled_forward_block(const CoupledForwardBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  Coupling coupling = block.coupling;
  coupling.synapse = synapse;
  coupling.adaptation = adaptation;
  const Real max_spikes(block.max_spikes), refractory(block.refractory);
  for (std::int64_t begin = 0; begin < block.steps; begin += kVecSteps) {
    const std::int64_t end = std::min(block.steps, begin + kVecSteps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) {
      const CoupledNeuron<Real> neuron = coupled_neuron_at<Storage>(block.neuron, lane);
      VecInput<Storage> input(block.input, true, begin, kVecSteps, lane);
      VecRows<Storage> spikes(block.spikes, true, begin, kVecSteps, lane);
      VecRows<Storage> membrane(block.membrane, true, begin, kVecSteps, lane);
      VecRows<Storage> current(block.current, synapse && block.keeps_current, begin, kVecSteps, lane);
      VecRows<Storage> adapted(block.adaptation, adaptation && block.keeps_adaptation, begin, kVecSteps, lane);
      VecRows<Storage> held(block.held, block.keeps_held, begin, kVecSteps, lane);
      CoupledState<Real> state{Real::read(block.state[kMembraneRow] + slot), Real::read(block.state[kSpikesRow] + slot),
                               Real::read(block.state[kCurrentRow] + slot),
                               Real::read(block.state[kAdaptationRow] + slot),
                               Real::read(block.state[kWaitingRow] + slot)};
      for (std::int64_t t = begin; t < end; ++t) {
        const CoupledStored<Real> stored =
            coupled_step<Storage>(coupling, neuron, max_spikes, refractory, input.forward(t), state);
        membrane.forward(t, stored.membrane);
        spikes.forward(t, state.spikes);
        current.forward(t, state.current);
        adapted.forward(t, stored.adaptation);
        held.forward(t, stored.held);
      }
      state.membrane.write(block.state[kMembraneRow] + slot);
      state.spikes.write(block.state[kSpikesRow] + slot);
      state.current.write(block.state[kCurrentRow] + slot);
      state.adaptation.write(block.state[kAdaptationRow] + slot);
      state.waiting.write(block.state[kWaitingRow] + slot);
    });
  }
  finish_streams();
}

template <class Real>
EXODUS_HOST_DEVICE CoupledAdjoint<Real> read_adjoint(const CoupledAdjointRows<typename Real::Lane>& rows, std::int64_t slot) {
  return {Real::read(rows.moved + slot), Real::read(rows.adaptation + slot), Real::read(rows.current + slot),
          Real::read(rows.held + slot),  Real::read(rows.into_adaptation + slot), Real::read(rows.into_current + slot)};
}

template <class Scalar, class Real>
EXODUS_HOST_DEVICE void add(const CoupledSumRows<Scalar>& rows, std::int64_t slot, const CoupledSums<Real>& sums) {
  for (int k = 0; k < kCoupledParameters; ++k) (Real::read(rows.of[k] + slot) + sums.of[k]).write(rows.of[k] + slot);
}

template <bool with_sums, bool synapse, bool adaptation, class Storage>
void coupled_backward_block(Method method, const CoupledBackwardBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  Coupling coupling = block.coupling;
  coupling.synapse = synapse;
  coupling.adaptation = adaptation;
  const Surrogate<compute_t<Storage>> call = block.surrogate;
  const Real slope(call.slope), scale(call.scale), max_spikes(block.max_spikes);
  constexpr std::int64_t steps = with_sums ? kVecStepsWithSums : kVecSteps;
  for (std::int64_t end = block.steps; end > 0; end -= steps) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - steps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) {
      const CoupledNeuron<Real> neuron = coupled_neuron_at<Storage>(block.neuron, lane);
      VecInput<Storage> membrane(block.membrane, true, end - 1, -steps, lane);
      VecInput<Storage> current(block.current, synapse && with_sums && block.keeps_current, end - 1, -steps, lane);
      VecInput<Storage> adapted(block.adaptation, adaptation, end - 1, -steps, lane);
      VecInput<Storage> held(block.held, block.keeps_held, end - 1, -steps, lane);
      VecInput<Storage> grad_spikes(block.grad_spikes, block.has_grad_spikes, end - 1, -steps, lane);
      VecInput<Storage> grad_membrane(block.grad_membrane, block.has_grad_membrane, end - 1, -steps, lane);
      VecRows<Storage> grad_input(block.grad_input, true, end - 1, -steps, lane);
      CoupledAdjoint<Real> adjoint = read_adjoint<Real>(block.adjoint, slot);
      CoupledSums<Real> sums;
      for (int k = 0; k < kCoupledParameters; ++k) sums.of[k] = Real(0);
      for (std::int64_t t = end - 1; t >= begin; --t) {
        CoupledStep<Real> step;
        step.membrane = membrane.backward(t);
        step.adaptation = adapted.backward(t);
        step.current = current.backward(t);
        step.held = held.backward(t);
        step.grad_spikes = grad_spikes.backward(t);
        step.grad_membrane = grad_membrane.backward(t);
        const Real threshold = adapted_threshold(coupling, neuron, step.adaptation);
        const auto waits = step.held > Real(0);
        step.spikes = Real(0);
        if (with_sums || adaptation || coupling.reset == Reset::zero) {
          step.spikes = select(waits, Real(0), fire(coupling.many_spikes, step.membrane, threshold, max_spikes));
        }
        step.surrogate = select(waits, Real(0), scaled_surrogate(call.kind, slope, scale, step.membrane, threshold));
        grad_input.backward(t, coupled_adjoint_step(method, coupling, with_sums, neuron, step, adjoint, sums));
      }
      adjoint.moved.write(block.adjoint.moved + slot);
      adjoint.adaptation.write(block.adjoint.adaptation + slot);
      adjoint.current.write(block.adjoint.current + slot);
      adjoint.held.write(block.adjoint.held + slot);
      adjoint.into_adaptation.write(block.adjoint.into_adaptation + slot);
      adjoint.into_current.write(block.adjoint.into_current + slot);
      if constexpr (with_sums) add(block.sums, slot, sums);
    });
  }
  finish_streams();
}

template <class Scalar>
void coupled_initial(Method method, const CoupledInitialRow<Scalar>& row) {
  using Real = VecOf<Scalar>;
  for_each_vector<Scalar>(row.width, [&](std::int64_t lane, std::int64_t slot) {
    CoupledSums<Real> sums;
    for (int k = 0; k < kCoupledParameters; ++k) sums.of[k] = Real(0);
    const auto read = [&](CoupledStateRow which) { return Real::read(row.initial[which] + slot); };
    const CoupledState<Real> gradient = coupled_adjoint_initial(
        method, row.coupling, coupled_neuron_at<Scalar>(row.neuron, lane),
        CoupledState<Real>{read(kMembraneRow), read(kSpikesRow), read(kCurrentRow), read(kAdaptationRow), read(kWaitingRow)},
        read_adjoint<Real>(row.adjoint, slot), sums);
    gradient.membrane.write(row.gradient[kMembraneRow] + slot);
    gradient.spikes.write(row.gradient[kSpikesRow] + slot);
    gradient.current.write(row.gradient[kCurrentRow] + slot);
    gradient.adaptation.write(row.gradient[kAdaptationRow] + slot);
    add(row.sums, slot, sums);
  });
}

// Code of its own for each set of variables; all else is asked in each step, which costs little.
template <class Body>
void with_variables(const Coupling& coupling, Body body) {
  if (coupling.synapse) {
    coupling.adaptation ? body(std::true_type{}, std::true_type{}) : body(std::true_type{}, std::false_type{});
  } else {
    coupling.adaptation ? body(std::false_type{}, std::true_type{}) : body(std::false_type{}, std::false_type{});
  }
}

template <class Storage>
void coupled_forward(const CoupledForwardBlock<Storage>& block) {
  with_variables(block.coupling,
                 [&](auto synapse, auto adaptation) { coupled_forward_block<synapse.value, adaptation.value>(block); });
}

template <class Storage>
void coupled_backward(Method method, const CoupledBackwardBlock<Storage>& block) {
  with_variables(block.coupling, [&](auto synapse, auto adaptation) {
    if (block.sums.of[0] != nullptr) {
      coupled_backward_block<true, synapse.value, adaptation.value>(method, block);
    } else {
      coupled_backward_block<false, synapse.value, adaptation.value>(method, block);
    }
  });
}

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
