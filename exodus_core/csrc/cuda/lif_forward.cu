// The LIF and IF forward pass on the GPU: one thread a lane, or a row of lanes, through time.
#include "backend.cuh"
#include "choice.cuh"
#include "lif.cuh"
#include "staged.cuh"

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
  __device__ __forceinline__ void step(Reset reset, bool many_spikes, bool bound_after_reset, const Storage (&from)[1],
                                       Storage (&to)[2]) {
    to[0] = store<Storage>(
        lif_step<Storage>(reset, many_spikes, bound_after_reset, neuron, load(from[0]), membrane, spikes));
    to[1] = store<Storage>(spikes);
  }
};

template <class T>
struct OfCall {
  T value;
};

// Calls run(reset, many_spikes, bound_after_reset): code of its own for each reset, and one for all with many spikes a
// step or a bound after the reset.
template <class Storage, class Run>
__device__ __forceinline__ void with_reset(const LifForwardArgs<Storage>& args, Run run) {
  const bool many_spikes = args.neurons.max_spikes > 1, after_reset = args.neurons.bound_after_reset;
  if (many_spikes || after_reset) {
    return run(OfCall<Reset>{args.reset}, OfCall<bool>{many_spikes}, OfCall<bool>{after_reset});
  }
  const auto alone = [&](auto reset) { run(reset, std::false_type{}, std::false_type{}); };
  switch (args.reset) {
    case Reset::subtract:
      return alone(std::integral_constant<Reset, Reset::subtract>{});
    case Reset::subtract_decayed:
      return alone(std::integral_constant<Reset, Reset::subtract_decayed>{});
    case Reset::zero:
      return alone(std::integral_constant<Reset, Reset::zero>{});
    case Reset::none:
      return alone(std::integral_constant<Reset, Reset::none>{});
  }
}

template <class Storage, int width>
__global__ void __launch_bounds__(kThreads) lif_forward_in_place(LifForwardArgs<Storage> args) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (first >= args.sweep.layout.lanes()) return;
  const std::int64_t column = first % args.sweep.layout.inner;
  ForwardLane<compute_t<Storage>> lanes[width];
#pragma unroll
  for (int i = 0; i < width; ++i) lanes[i] = lanes[i].of(args, first + i, column + i);
  with_reset(args, [&](auto reset, auto many_spikes, auto after_reset) {
    sweep_in_place<width, kGroup<width>>(args.sweep, first, shared, [&](const auto& x, auto& y) {
#pragma unroll
      for (int k = 0; k < static_cast<int>(sizeof(x) / sizeof(x[0])); ++k) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          lanes[i].step(reset.value, many_spikes.value, after_reset.value, x[k][i], y[k][i]);
        }
      }
    });
  });
}

template <class Storage>
__global__ void __launch_bounds__(kStagedLanes) lif_forward_staged(LifForwardArgs<Storage> args, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  auto lane = ForwardLane<compute_t<Storage>>::of(args, block.lane(), block.lane() % args.sweep.layout.inner);
  sweep_staged<false>(args.sweep, block, unit, shared, [&](const auto& x, auto& y) {
    with_reset(args, [&](auto reset, auto many_spikes, auto after_reset) {
#pragma unroll
      for (int k = 0; k < static_cast<int>(sizeof(x) / sizeof(x[0])); ++k) {
        lane.step(reset.value, many_spikes.value, after_reset.value, x[k][0], y[k][0]);
      }
    });
  });
}

template <class Storage>
void launch_forward(const LifForwardArgs<Storage>& args, const OnDeviceOf& device) {
  const Layout& layout = args.sweep.layout;
  if (layout.inner < kMinInPlaceLanes) {
    EXODUS_LAUNCH((lif_forward_staged<Storage>), staged_blocks(layout), kStagedLanes,
                  staged_bytes(layout, args.sweep.given(), 2), device.stream(), args, staged_unit(args.sweep));
    return;
  }
  const Choice choice = choose(device.capability(), layout.lanes());
  with_width<kMaxRowBytes / sizeof(Storage)>(width_for(args.sweep, choice.row_bytes), [&](auto width) {
    EXODUS_LAUNCH((lif_forward_in_place<Storage, width.value>), blocks_for(layout.lanes() / width.value, kThreads),
                  kThreads, (ring_bytes<width.value, kGroup<width.value>>(args.sweep, device)), device.stream(), args);
  });
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
                            device);
  });
}

}  // namespace exodus::cuda
