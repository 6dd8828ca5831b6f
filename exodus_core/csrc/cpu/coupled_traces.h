// The row kernel of the variables that follow from a membrane trace, included by kernels_impl.h for each instruction set. Its
// walk over vectors and steps is that of coupled_kernels.h.

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

template <class Storage>
void coupled_traces(const CoupledTracesBlock<Storage>& block) {
  using Real = VecOf<Storage>;
  const Coupling coupling = block.coupling;
  const Real max_spikes(block.max_spikes), refractory(block.refractory);
  for (std::int64_t begin = 0; begin < block.steps; begin += kCoupledSteps) {
    const std::int64_t end = std::min(block.steps, begin + kCoupledSteps);
    for_each_vector<Storage>(block.width, [&](std::int64_t lane, std::int64_t slot) __attribute__((always_inline)) {
      const CoupledNeuron<Real> neuron = coupled_neuron_at<Storage>(coupling, block.neuron, lane);
      VecInput<Storage> membrane(block.membrane, true, begin, kCoupledSteps, lane);
      VecRows<Storage> spikes(block.spikes, block.keeps_spikes, begin, kCoupledSteps, lane);
      VecRows<Storage> adapted(block.adaptation, block.keeps_adaptation, begin, kCoupledSteps, lane);
      VecRows<Storage> held(block.held, block.keeps_held, begin, kCoupledSteps, lane);
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

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
