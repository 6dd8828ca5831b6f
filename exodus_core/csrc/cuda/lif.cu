// LIF and IF on the GPU: one thread a lane, or a vector of lanes, through time.
#include "backend.cuh"
#include "dispatch.cuh"
#include "lif.cuh"

namespace exodus::cuda {
namespace {

template <class Real>
struct ForwardLane {
  LifNeuron<Real> neuron;
  Real membrane;
  Real spikes;

  template <class Storage>
  __device__ __forceinline__ static ForwardLane of(const LifForwardArgs<Storage>& args, std::int64_t lane,
                                                   std::int64_t column) {
    return {args.neurons.of(column), lane_value(args.initial_membrane, lane), lane_value(args.initial_spikes, lane)};
  }
  template <class Storage>
  __device__ __forceinline__ void step(Reset reset, const Storage (&from)[1], Storage (&to)[2]) {
    to[0] = store<Storage>(
        lif_step<Storage>(reset, neuron.max_spikes > 1, neuron, load(from[0]), membrane, spikes));
    to[1] = store<Storage>(spikes);
  }
};

template <class Storage, int width>
__global__ void __launch_bounds__(kThreads) lif_forward_in_place(LifForwardArgs<Storage> args) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= args.sweep.layout.lanes()) return;
  const std::int64_t column = first % args.sweep.layout.inner;
  ForwardLane<compute_t<Storage>> lanes[width];
#pragma unroll
  for (int i = 0; i < width; ++i) lanes[i] = lanes[i].of(args, first + i, column + i);
  sweep_in_place<width>(args.sweep, first, [&](int i, const Storage(&from)[1], Storage(&to)[2]) {
    lanes[i].step(args.reset, from, to);
  });
}

template <class Storage>
__global__ void __launch_bounds__(kStagedLanes) lif_forward_staged(LifForwardArgs<Storage> args) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  auto lane = ForwardLane<compute_t<Storage>>::of(args, block.lane(), block.lane() % args.sweep.layout.inner);
  sweep_staged(args.sweep, block, reinterpret_cast<Storage*>(shared),
               [&](int, const Storage(&from)[1], Storage(&to)[2]) { lane.step(args.reset, from, to); });
}

// lam of one lane and, if wanted, its sums.
template <class Real, bool with_sums>
struct BackwardLane {
  LifNeuron<Real> neuron;
  Real adjoint = 0;
  BlockSums<Real> sums;

  template <class Storage>
  __device__ __forceinline__ void step(const LifBackwardArgs<Storage>& args, const Storage (&from)[3], Storage (&to)[1]) {
    const LifStep<Real> known = args.template step<with_sums>(neuron, from);
    adjoint = lif_adjoint_step(args.method, args.reset, with_sums, true, neuron, known, adjoint, sums.block);
    to[0] = store<Storage>(adjoint);
    if (with_sums) sums.count_step();
  }
  template <class Storage>
  __device__ __forceinline__ void close(const LifBackwardArgs<Storage>& args, std::int64_t lane) {
    sums.add_block();
    args.close(neuron, lane, adjoint, sums.total);
  }
};

template <class Storage, int width, bool with_sums>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Storage>)
    lif_backward_in_place(LifBackwardArgs<Storage> args) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= args.sweep.layout.lanes()) return;
  const std::int64_t column = first % args.sweep.layout.inner;
  BackwardLane<compute_t<Storage>, with_sums> lanes[width];
#pragma unroll
  for (int i = 0; i < width; ++i) lanes[i].neuron = args.neurons.of(column + i);
  sweep_in_place<width>(args.sweep, first, [&](int i, const Storage(&from)[3], Storage(&to)[1]) {
    lanes[i].step(args, from, to);
  });
  if constexpr (with_sums) {
#pragma unroll
    for (int i = 0; i < width; ++i) lanes[i].close(args, first + i);
  }
}

template <class Storage, bool with_sums>
__global__ void __launch_bounds__(kStagedLanes, kMinBlocks<Storage>)
    lif_backward_staged(LifBackwardArgs<Storage> args) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  BackwardLane<compute_t<Storage>, with_sums> lane;
  lane.neuron = args.neurons.of(block.lane() % args.sweep.layout.inner);
  sweep_staged(args.sweep, block, reinterpret_cast<Storage*>(shared),
               [&](int, const Storage(&from)[3], Storage(&to)[1]) { lane.step(args, from, to); });
  if (with_sums && block.has_thread()) lane.close(args, block.lane());
}

template <class Storage>
void launch_forward(const LifForwardArgs<Storage>& args, cudaStream_t stream) {
  constexpr int kWidth = vector_width<Storage>();
  const Layout& layout = args.sweep.layout;
  if (layout.inner < kMinInPlaceLanes) {
    EXODUS_LAUNCH((lif_forward_staged<Storage>), staged_blocks(layout), kStagedLanes, staged_bytes<Storage>(2), stream,
                  args);
  } else if (fits_vectors<kWidth>(args.sweep)) {
    EXODUS_LAUNCH((lif_forward_in_place<Storage, kWidth>), blocks_for(layout.lanes() / kWidth, kThreads), kThreads, 0,
                  stream, args);
  } else {
    EXODUS_LAUNCH((lif_forward_in_place<Storage, 1>), blocks_for(layout.lanes(), kThreads), kThreads, 0, stream, args);
  }
}

template <class Storage, bool with_sums>
void launch_backward(const LifBackwardArgs<Storage>& args, cudaStream_t stream) {
  constexpr int kWidth = with_sums ? 1 : vector_width<Storage>();  // sums take the registers of three more lanes
  const Layout& layout = args.sweep.layout;
  if (by_chunks(layout)) {
    lif_backward_by_chunks<Storage, with_sums>(args, stream);
  } else if (layout.inner < kMinInPlaceLanes) {
    EXODUS_LAUNCH((lif_backward_staged<Storage, with_sums>), staged_blocks(layout), kStagedLanes,
                  staged_bytes<Storage>(3), stream, args);
  } else if (fits_vectors<kWidth>(args.sweep)) {
    EXODUS_LAUNCH((lif_backward_in_place<Storage, kWidth, with_sums>), blocks_for(layout.lanes() / kWidth, kThreads),
                  kThreads, 0, stream, args);
  } else {
    EXODUS_LAUNCH((lif_backward_in_place<Storage, 1, with_sums>), blocks_for(layout.lanes(), kThreads), kThreads, 0,
                  stream, args);
  }
}

}  // namespace

void Cuda::run(const LifForwardCall& call) {
  const OnDeviceOf device(call.input);
  dispatch(call.input, [&](auto element) {
    using Storage = decltype(element);
    using Real = compute_t<Storage>;
    launch_forward<Storage>({{call.layout,
                              false,
                              {elements<Storage>(call.input)},
                              {mutable_elements<Storage>(call.membrane), mutable_elements<Storage>(call.spikes)}},
                             DeviceNeurons<Storage>(call.parameters),
                             call.reset,
                             elements<Real>(call.initial.membrane),
                             elements<Real>(call.initial.spikes)},
                            device.stream());
  });
}

void Cuda::run(const LifBackwardCall& call) {
  const OnDeviceOf device(call.membrane);
  dispatch(call.membrane, [&](auto element) {
    using Storage = decltype(element);
    using Real = compute_t<Storage>;
    LifBackwardArgs<Storage> args{{call.layout,
                                   true,
                                   {elements<Storage>(call.membrane), elements<Storage>(call.grad_spikes),
                                    elements<Storage>(call.grad_membrane)},
                                   {mutable_elements<Storage>(call.grad_input)}},
                                  DeviceNeurons<Storage>(call.parameters),
                                  call.reset,
                                  call.surrogate.as<Real>(),
                                  call.method,
                                  elements<Real>(call.initial.membrane),
                                  elements<Real>(call.initial.spikes),
                                  nullptr};
    if (call.lane_gradients.numel() > 0) {
      args.lane_gradients = mutable_elements<Real>(call.lane_gradients);
      launch_backward<Storage, true>(args, device.stream());
    } else {
      launch_backward<Storage, false>(args, device.stream());
    }
  });
}

STABLE_TORCH_LIBRARY_IMPL(exodus, EXODUS_DISPATCH_KEY, m) { register_operators<Cuda>(m); }

}  // namespace exodus::cuda
