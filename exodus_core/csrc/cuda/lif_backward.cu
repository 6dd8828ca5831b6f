// The LIF and IF backward pass on the GPU: one thread a lane, or a row of lanes, back through time.
#include "backend.cuh"
#include "choice.cuh"
#include "lif.cuh"
#include "staged.cuh"

namespace exodus::cuda {
namespace {

// lam of the lanes of a thread and, if wanted, their sums.
template <class Storage, int width, bool with_sums>
struct BackwardLanes {
  using Real = compute_t<Storage>;
  const LifBackwardArgs<Storage>& args;
  LifNeuron<Real> neuron[width];
  Real by_spikes[width];  // c, of a reset that does not depend on the membrane
  Real adjoint[width];
  BlockSums<Real> sums[width];

  __device__ __forceinline__ BackwardLanes(const LifBackwardArgs<Storage>& args, std::int64_t column) : args(args) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      neuron[i] = args.neurons.of(column + i);
      by_spikes[i] = through_spikes(args.method, args.reset, neuron[i], Real(0));
      adjoint[i] = 0;
    }
  }

  template <int steps>
  __device__ __forceinline__ void operator()(const Storage (&x)[steps][width][3], Storage (&y)[steps][width][1]) {
    const LifNeuron<Real>* lanes[width];
#pragma unroll
    for (int i = 0; i < width; ++i) lanes[i] = &neuron[i];
    const bool to_zero = args.reset == Reset::zero && differentiates_reset(args.method);
    args.template for_each<with_sums>(lanes, x, [&](int k, int i, const LifStep<Real>& step) {
      const LifSlopes<Real> to_zero_slopes = lif_slopes(Method::exodus, Reset::zero, neuron[i], step.membrane, step.spikes);
      const LifSlopes<Real> slopes{to_zero ? to_zero_slopes.by_spikes : by_spikes[i],
                                   to_zero ? to_zero_slopes.direct : neuron[i].alpha};
      adjoint[i] =
          lif_adjoint_step(args.reset, slopes, with_sums, !args.neurons.bound_after_reset, args.neurons.bound_after_reset, neuron[i], step, adjoint[i], sums[i].block);
      y[k][i][0] = store<Storage>(adjoint[i]);
      if (with_sums) sums[i].count_step();
    });
  }

  __device__ __forceinline__ void close(int i, std::int64_t lane) {
    sums[i].add_block();
    args.close(neuron[i], lane, adjoint[i], sums[i].total);
  }
};

template <class Storage, int width, bool with_sums>
__global__ void __launch_bounds__(kThreads, kMinBlocks<Storage, with_sums>)
    lif_backward_in_place(LifBackwardArgs<Storage> args) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= args.sweep.layout.lanes()) return;
  BackwardLanes<Storage, width, with_sums> lanes(args, first % args.sweep.layout.inner);
  sweep_in_place<width, kGroup<width>>(args.sweep, first, shared, [&](const auto& x, auto& y) { lanes(x, y); });
  if constexpr (with_sums) {
#pragma unroll
    for (int i = 0; i < width; ++i) lanes.close(i, first + i);
  }
}

template <class Storage, bool with_sums>
__global__ void __launch_bounds__(kStagedLanes, kMinBlocks<Storage, with_sums>)
    lif_backward_staged(LifBackwardArgs<Storage> args, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  BackwardLanes<Storage, 1, with_sums> lane(args, block.lane() % args.sweep.layout.inner);
  sweep_staged<true>(args.sweep, block, unit, shared, [&](const auto& x, auto& y) { lane(x, y); });
  if (with_sums && block.has_thread()) lane.close(0, block.lane());
}

// The sums take the registers of more lanes: a thread that has them has one lane, or two of a half type.
template <class Storage, bool with_sums>
constexpr int kWidestBackward = with_sums ? (sizeof(Storage) == 2 ? 2 : 1) : kMaxRowBytes / sizeof(Storage);

template <class Storage, bool with_sums>
void launch_backward(const LifBackwardArgs<Storage>& args, const OnDeviceOf& device) {
  const Layout& layout = args.sweep.layout;
  const Choice choice = choose(device.capability(), layout.lanes());
  if (choice.chunk_steps > 0 && layout.time >= choice.chunk_steps) {
    lif_backward_by_chunks<Storage, with_sums>(args, device);
  } else if (layout.inner < kMinInPlaceLanes) {
    EXODUS_LAUNCH((lif_backward_staged<Storage, with_sums>), staged_blocks(layout), kStagedLanes,
                  staged_bytes(layout, args.sweep.given(), 1), device.stream(), args, staged_unit(args.sweep));
  } else {
    with_width<kWidestBackward<Storage, with_sums>>(width_for(args.sweep, choice.row_bytes), [&](auto width) {
      EXODUS_LAUNCH((lif_backward_in_place<Storage, width.value, with_sums>),
                    blocks_for(layout.lanes() / width.value, kThreads), kThreads,
                    (ring_bytes<width.value, kGroup<width.value>>(args.sweep, device)), device.stream(), args);
    });
  }
}

}  // namespace

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
      launch_backward<Storage, true>(args, device);
    } else {
      launch_backward<Storage, false>(args, device);
    }
  });
}

}  // namespace exodus::cuda
