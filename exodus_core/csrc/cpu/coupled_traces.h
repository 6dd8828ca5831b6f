// The row kernel of the variables that follow from a membrane trace, included by kernels_impl.h for each instruction set. Its
// walk over vectors and steps is that of coupled_kernels.h.

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

template <class Known, class Storage>
void coupled_traces_block(const CoupledTracesBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  const Real max_spikes(block.max_spikes), refractory(block.refractory);
  for (std::int64_t begin = 0; begin < block.steps; begin += kVecSteps) {
    const std::int64_t end = std::min(block.steps, begin + kVecSteps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) __attribute__((always_inline)) {
      const Coupling coupling = Known::of(block.coupling);
      const CoupledNeuron<Real> neuron = coupled_neuron_at<Storage>(coupling, block.neuron, lane);
      VecInput<Storage> membrane(block.membrane, true, begin, kVecSteps, lane);
      VecRows<Storage> spikes(block.spikes, block.keeps_spikes, begin, kVecSteps, lane);
      VecRows<Storage> adapted(block.adaptation, Known::may_adaptation && block.keeps_adaptation, begin, kVecSteps, lane);
      VecRows<Storage> held(block.held, Known::may_wait && block.keeps_held, begin, kVecSteps, lane);
      CoupledState<Real> state = read_state<Real>(coupling, block.state, slot);
      for (std::int64_t t = begin; t < end; ++t) {
        const CoupledStored<Real> stored =
            coupled_trace_step<Storage>(coupling, neuron, max_spikes, refractory, membrane.forward(t), state);
        spikes.forward(t, state.spikes);
        adapted.forward(t, stored.adaptation);
        held.forward(t, stored.held);
      }
      write_state(coupling, state, block.state, slot);
    });
  }
  finish_streams();
}

template <class Storage>
void coupled_traces(const CoupledTracesBlock<Storage>& block) {
  with_known<Storage>(block.coupling, true, [&](auto known) { coupled_traces_block<decltype(known)>(block); });
}

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
