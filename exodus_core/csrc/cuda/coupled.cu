// Neurons whose membrane is coupled with a synaptic current, an adaptation or a refractory period, on the GPU: one thread a
// lane, through time.
#include "backend.cuh"
#include "lif.cuh"
#include "staged.cuh"

namespace exodus::cuda {
namespace {

// The parameters: numbers, or rows of 1 or `columns` values.
template <class Storage>
struct DeviceCoupled {
  using Real = compute_t<Storage>;
  Real numbers[kCoupledParameters];
  const Real* values;  // null: the numbers
  std::int64_t columns;

  explicit DeviceCoupled(const CoupledParameters& parameters)
      : values(elements<Real>(parameters.tensor)),
        columns(parameters.tensor.has_value() ? parameters.tensor->numel() / kCoupledParameters : 1) {
    for (int k = 0; k < kCoupledParameters; ++k) numbers[k] = static_cast<Real>(parameters.numbers[k]);
  }

  __device__ __forceinline__ Real of(CoupledParameter which, std::int64_t column) const {
    return values == nullptr ? numbers[which] : load_global(values + which * columns + (columns == 1 ? 0 : column));
  }
  __device__ __forceinline__ CoupledNeuron<Real> of(std::int64_t column) const {
    return {of(kOfAlpha, column),        of(kOfThreshold, column),     of(kOfResetBy, column),
            as_stored<Storage>(of(kOfMinMembrane, column)),            of(kOfSynapseAlpha, column),
            of(kOfSynapseGain, column),  of(kOfAdaptAlpha, column),    of(kOfAdaptMembrane, column),
            of(kOfAdaptBy, column),      of(kOfAdaptCurrent, column),  of(kOfAdaptThreshold, column)};
  }
};

// A state of (kCoupledStates, lanes) values; zeros if it is not given.
template <class Real>
__device__ __forceinline__ CoupledState<Real> state_of(const Real* rows, std::int64_t lane, std::int64_t lanes) {
  const auto row = [&](CoupledStateRow which) { return rows == nullptr ? Real(0) : load_global(rows + which * lanes + lane); };
  return {row(kMembraneRow), row(kSpikesRow), row(kCurrentRow), row(kAdaptationRow), row(kWaitingRow)};
}

template <class Real>
__device__ __forceinline__ void write_state(Real* rows, std::int64_t lane, std::int64_t lanes, const CoupledState<Real>& state) {
  store_global(rows + kMembraneRow * lanes + lane, state.membrane);
  store_global(rows + kSpikesRow * lanes + lane, state.spikes);
  store_global(rows + kCurrentRow * lanes + lane, state.current);
  store_global(rows + kAdaptationRow * lanes + lane, state.adaptation);
  store_global(rows + kWaitingRow * lanes + lane, state.waiting);
}

template <class Storage>
struct CoupledForwardArgs {
  using Real = compute_t<Storage>;
  Sweep<Storage, 1, 5, 2> sweep;  // input -> membrane, spikes; current, adaptation, refractory steps
  DeviceCoupled<Storage> neurons;
  Coupling coupling;
  Real max_spikes;
  Real refractory;
  const Real* initial;
  Real* last;
};

template <class Storage>
struct CoupledBackwardArgs {
  using Real = compute_t<Storage>;
  // membrane, grad_spikes, grad_membrane, current, adaptation, refractory steps -> grad_input
  Sweep<Storage, 6, 1> sweep;
  DeviceCoupled<Storage> neurons;
  Coupling coupling;
  Real max_spikes;
  Surrogate<Real> surrogate;
  Method method;
  const Real* grad_last;
  const Real* initial;
  Real* lane_gradients;  // those of the state and of the parameters, or null
};

template <class Storage>
struct ForwardLane {
  using Real = compute_t<Storage>;
  const CoupledForwardArgs<Storage>& args;
  CoupledNeuron<Real> neuron;
  CoupledState<Real> state;

  __device__ __forceinline__ ForwardLane(const CoupledForwardArgs<Storage>& args, std::int64_t lane)
      : args(args),
        neuron(args.neurons.of(lane % args.sweep.layout.inner)),
        state(state_of(args.initial, lane, args.sweep.layout.lanes())) {}

  __device__ __forceinline__ void step(const Storage (&from)[1], Storage (&to)[5]) {
    const CoupledStored<Real> stored =
        coupled_step<Storage>(args.coupling, neuron, args.max_spikes, args.refractory, load(from[0]), state);
    to[0] = store<Storage>(stored.membrane);
    to[1] = store<Storage>(state.spikes);
    to[2] = store<Storage>(state.current);
    to[3] = store<Storage>(stored.adaptation);
    to[4] = store<Storage>(stored.held);
  }
  __device__ __forceinline__ void close(std::int64_t lane) const {
    write_state(args.last, lane, args.sweep.layout.lanes(), state);
  }
};

template <class Storage, bool with_sums>
struct BackwardLane {
  using Real = compute_t<Storage>;
  static constexpr int kBlock = 64;  // as in lif.cuh, a block of steps is summed before it adds to the total
  const CoupledBackwardArgs<Storage>& args;
  CoupledNeuron<Real> neuron;
  CoupledAdjoint<Real> adjoint{};
  CoupledSums<Real> sums{};
  double total[with_sums ? kCoupledParameters : 1] = {};
  int steps = 0;

  __device__ __forceinline__ BackwardLane(const CoupledBackwardArgs<Storage>& args, std::int64_t lane)
      : args(args), neuron(args.neurons.of(lane % args.sweep.layout.inner)) {
    const CoupledState<Real> last = state_of(args.grad_last, lane, args.sweep.layout.lanes());
    adjoint.into_current = last.current;
    adjoint.into_adaptation = last.adaptation;
  }

  __device__ __forceinline__ void step(const Storage (&from)[6], Storage (&to)[1]) {
    CoupledStep<Real> step;
    step.membrane = load(from[0]);
    step.grad_spikes = load(from[1]);
    step.grad_membrane = load(from[2]);
    step.current = load(from[3]);
    step.adaptation = load(from[4]);
    step.held = load(from[5]);
    const Real threshold = adapted_threshold(args.coupling, neuron, step.adaptation);
    const bool waits = step.held > Real(0);
    step.spikes = waits ? Real(0) : fire(args.coupling.many_spikes, step.membrane, threshold, args.max_spikes);
    step.surrogate = waits ? Real(0) : args.surrogate(step.membrane, threshold);
    to[0] = store<Storage>(coupled_adjoint_step(args.method, args.coupling, with_sums, neuron, step, adjoint, sums));
    if (with_sums && ++steps % kBlock == 0) add_block();
  }
  __device__ __forceinline__ void add_block() {
    if constexpr (with_sums) {
#pragma unroll
      for (int k = 0; k < kCoupledParameters; ++k) {
        total[k] += sums.of[k];
        sums.of[k] = 0;
      }
    }
  }
  __device__ __forceinline__ void close(std::int64_t lane) {
    if constexpr (with_sums) {
      const std::int64_t lanes = args.sweep.layout.lanes();
      add_block();
      const CoupledState<Real> initial = coupled_adjoint_initial(
          args.method, args.coupling, neuron, state_of(args.initial, lane, lanes), adjoint, sums);
      add_block();
      write_state(args.lane_gradients, lane, lanes, initial);
#pragma unroll
      for (int k = 0; k < kCoupledParameters; ++k) {
        store_global(args.lane_gradients + (kCoupledStates + k) * lanes + lane, static_cast<Real>(total[k]));
      }
    }
  }
};

template <class Storage>
__global__ void __launch_bounds__(kThreads, 1) coupled_forward_in_place(CoupledForwardArgs<Storage> args) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (mine >= args.sweep.layout.lanes()) return;
  ForwardLane<Storage> lane(args, mine);
  sweep_in_place<1, kGroupOfLongSteps<Storage>>(
      args.sweep, mine, shared, step_by_step([&](const Storage(&from)[1], Storage(&to)[5]) { lane.step(from, to); }));
  lane.close(mine);
}

template <class Storage>
__global__ void __launch_bounds__(kStagedLanes, 1) coupled_forward_staged(CoupledForwardArgs<Storage> args, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  ForwardLane<Storage> lane(args, block.lane());
  sweep_staged<false>(args.sweep, block, unit, shared,
                      step_by_step([&](const Storage(&from)[1], Storage(&to)[5]) { lane.step(from, to); }));
  if (block.has_thread()) lane.close(block.lane());
}

template <class Storage, bool with_sums>
__global__ void __launch_bounds__(kThreads, 1) coupled_backward_in_place(CoupledBackwardArgs<Storage> args) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (mine >= args.sweep.layout.lanes()) return;
  BackwardLane<Storage, with_sums> lane(args, mine);
  sweep_in_place<1, kGroupOfLongSteps<Storage>>(
      args.sweep, mine, shared, step_by_step([&](const Storage(&from)[6], Storage(&to)[1]) { lane.step(from, to); }));
  lane.close(mine);
}

template <class Storage, bool with_sums>
__global__ void __launch_bounds__(kStagedLanes, 1)
    coupled_backward_staged(CoupledBackwardArgs<Storage> args, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  BackwardLane<Storage, with_sums> lane(args, block.lane());
  sweep_staged<true>(args.sweep, block, unit, shared,
                     step_by_step([&](const Storage(&from)[6], Storage(&to)[1]) { lane.step(from, to); }));
  if (block.has_thread()) lane.close(block.lane());
}

template <class Storage, bool with_sums>
void launch_backward(const CoupledBackwardArgs<Storage>& args, const OnDeviceOf& device) {
  const Layout& layout = args.sweep.layout;
  if (layout.inner < kMinInPlaceLanes) {
    EXODUS_LAUNCH((coupled_backward_staged<Storage, with_sums>), staged_blocks(layout), kStagedLanes,
                  staged_bytes(layout, args.sweep.given(), 1), device.stream(), args, staged_unit(args.sweep));
  } else {
    EXODUS_LAUNCH((coupled_backward_in_place<Storage, with_sums>), blocks_for(layout.lanes(), kThreads), kThreads,
                  (ring_bytes<1, kGroupOfLongSteps<Storage>>(args.sweep, device)), device.stream(), args);
  }
}

// The elements of an output, or null if it is not wanted.
template <class Storage>
Storage* wanted(const Tensor& tensor) {
  return tensor.numel() > 0 ? mutable_elements<Storage>(tensor) : nullptr;
}

}  // namespace

void Cuda::run(const CoupledForwardCall& call) {
  const OnDeviceOf device(call.input);
  dispatch(call.input, [&](auto element) {
    using Storage = decltype(element);
    using Real = compute_t<Storage>;
    const CoupledForwardArgs<Storage> args{{call.layout,
                                            false,
                                            {elements<Storage>(call.input)},
                                            {mutable_elements<Storage>(call.membrane),
                                             mutable_elements<Storage>(call.spikes), wanted<Storage>(call.current),
                                             wanted<Storage>(call.adaptation), wanted<Storage>(call.held)}},
                                           DeviceCoupled<Storage>(call.parameters),
                                           call.coupling,
                                           static_cast<Real>(call.max_spikes),
                                           static_cast<Real>(call.refractory),
                                           elements<Real>(call.initial),
                                           mutable_elements<Real>(call.last)};
    if (call.layout.inner < kMinInPlaceLanes) {
      EXODUS_LAUNCH((coupled_forward_staged<Storage>), staged_blocks(call.layout), kStagedLanes,
                    staged_bytes(call.layout, args.sweep.given(), 5), device.stream(), args, staged_unit(args.sweep));
    } else {
      EXODUS_LAUNCH((coupled_forward_in_place<Storage>), blocks_for(call.layout.lanes(), kThreads), kThreads,
                    (ring_bytes<1, kGroupOfLongSteps<Storage>>(args.sweep, device)), device.stream(), args);
    }
  });
}

void Cuda::run(const CoupledBackwardCall& call) {
  const OnDeviceOf device(call.membrane);
  dispatch(call.membrane, [&](auto element) {
    using Storage = decltype(element);
    using Real = compute_t<Storage>;
    CoupledBackwardArgs<Storage> args{{call.layout,
                                       true,
                                       {elements<Storage>(call.membrane), elements<Storage>(call.grad_spikes),
                                        elements<Storage>(call.grad_membrane), elements<Storage>(call.current),
                                        elements<Storage>(call.adaptation), elements<Storage>(call.held)},
                                       {mutable_elements<Storage>(call.grad_input)}},
                                      DeviceCoupled<Storage>(call.parameters),
                                      call.coupling,
                                      static_cast<Real>(call.max_spikes),
                                      call.surrogate.as<Real>(),
                                      call.method,
                                      elements<Real>(call.grad_last),
                                      elements<Real>(call.initial),
                                      nullptr};
    if (call.lane_gradients.numel() > 0) {
      args.lane_gradients = mutable_elements<Real>(call.lane_gradients);
      launch_backward<Storage, true>(args, device);
    } else {
      launch_backward<Storage, false>(args, device);
    }
  });
}

namespace {

template <class Storage>
struct CoupledTracesArgs {
  using Real = compute_t<Storage>;
  Sweep<Storage, 1, 3, 0> sweep;  // membrane -> spikes, adaptation, refractory steps
  DeviceCoupled<Storage> neurons;
  Coupling coupling;
  Real max_spikes;
  Real refractory;
  const Real* initial;
};

template <class Storage>
struct TracesLane {
  using Real = compute_t<Storage>;
  const CoupledTracesArgs<Storage>& args;
  CoupledNeuron<Real> neuron;
  CoupledState<Real> state;

  __device__ __forceinline__ TracesLane(const CoupledTracesArgs<Storage>& args, std::int64_t lane)
      : args(args),
        neuron(args.neurons.of(lane % args.sweep.layout.inner)),
        state(state_of(args.initial, lane, args.sweep.layout.lanes())) {}

  __device__ __forceinline__ void step(const Storage (&from)[1], Storage (&to)[3]) {
    const CoupledStored<Real> stored =
        coupled_trace_step<Storage>(args.coupling, neuron, args.max_spikes, args.refractory, load(from[0]), state);
    to[0] = store<Storage>(state.spikes);
    to[1] = store<Storage>(stored.adaptation);
    to[2] = store<Storage>(stored.held);
  }
};

template <class Storage>
__global__ void __launch_bounds__(kThreads, 1) coupled_traces_in_place(CoupledTracesArgs<Storage> args) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (mine >= args.sweep.layout.lanes()) return;
  TracesLane<Storage> lane(args, mine);
  sweep_in_place<1, kGroupOfLongSteps<Storage>>(
      args.sweep, mine, shared, step_by_step([&](const Storage(&from)[1], Storage(&to)[3]) { lane.step(from, to); }));
}

template <class Storage>
__global__ void __launch_bounds__(kStagedLanes, 1) coupled_traces_staged(CoupledTracesArgs<Storage> args, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  TracesLane<Storage> lane(args, block.lane());
  sweep_staged<false>(args.sweep, block, unit, shared,
                      step_by_step([&](const Storage(&from)[1], Storage(&to)[3]) { lane.step(from, to); }));
}

}  // namespace

void Cuda::run(const CoupledTracesCall& call) {
  const OnDeviceOf device(call.membrane);
  dispatch(call.membrane, [&](auto element) {
    using Storage = decltype(element);
    using Real = compute_t<Storage>;
    const CoupledTracesArgs<Storage> args{{call.layout,
                                           false,
                                           {elements<Storage>(call.membrane)},
                                           {wanted<Storage>(call.spikes), wanted<Storage>(call.adaptation),
                                            wanted<Storage>(call.held)}},
                                          DeviceCoupled<Storage>(call.parameters),
                                          call.coupling,
                                          static_cast<Real>(call.max_spikes),
                                          static_cast<Real>(call.refractory),
                                          elements<Real>(call.initial)};
    if (call.layout.inner < kMinInPlaceLanes) {
      EXODUS_LAUNCH((coupled_traces_staged<Storage>), staged_blocks(call.layout), kStagedLanes,
                    staged_bytes(call.layout, args.sweep.given(), 3), device.stream(), args, staged_unit(args.sweep));
    } else {
      EXODUS_LAUNCH((coupled_traces_in_place<Storage>), blocks_for(call.layout.lanes(), kThreads), kThreads,
                    (ring_bytes<1, kGroupOfLongSteps<Storage>>(args.sweep, device)), device.stream(), args);
    }
  });
}

}  // namespace exodus::cuda
