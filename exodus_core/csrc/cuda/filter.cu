// Causal filters on the GPU: one thread a lane, through time; and the gradient of taps, one block a tap.
#include "backend.cuh"
#include "kernel_state.cuh"

namespace exodus::cuda {
namespace {

template <class Storage>
struct FilterArgs {
  Sweep<Storage, 1, 1> sweep;
  DeviceKernel<compute_t<Storage>> kernel;
};

template <class Storage>
__global__ void __launch_bounds__(kThreads) filter_in_place(FilterArgs<Storage> args, int walk_bytes) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (mine >= args.sweep.layout.lanes()) return;
  KernelState<compute_t<Storage>> state(args.kernel, shared + walk_bytes, mine, args.sweep.layout.lanes());
  sweep_in_place<1, kGroupOfLongSteps<Storage>>(args.sweep, mine, shared, step_by_step([&](const Storage(&from)[1], Storage(&to)[1]) {
    state.push(load(from[0]));
    to[0] = store<Storage>(state.response());
  }));
}

template <class Storage, bool reverse>
__global__ void __launch_bounds__(kStagedLanes) filter_staged(FilterArgs<Storage> args, int walk_bytes, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  KernelState<compute_t<Storage>> state(args.kernel, shared + walk_bytes, block.lane(), args.sweep.layout.lanes());
  sweep_staged<reverse>(args.sweep, block, unit, shared, step_by_step([&](const Storage(&from)[1], Storage(&to)[1]) {
    state.push(load(from[0]));
    to[0] = store<Storage>(state.response());
  }));
}

constexpr int kTapThreads = 256;

template <class Storage>
struct TapsArgs {
  Layout layout;
  const Storage* grad;
  const Storage* source;
  std::int64_t delay;
  compute_t<Storage>* gradient;
};

// One block a tap. For one outer index both factors are one run of memory, of which a thread adds up so many products in
// Real before they count in its sum in double; the threads' sums are added in a fixed tree.
template <class Storage>
__global__ void __launch_bounds__(kTapThreads) taps_gradient_sums(TapsArgs<Storage> args) {
  using Real = compute_t<Storage>;
  constexpr std::int64_t kProducts = 16;
  EXODUS_SHARED_MEMORY(shared);
  double* sums = reinterpret_cast<double*>(shared);
  const std::int64_t shift = static_cast<std::int64_t>(blockIdx.x) + args.delay;
  const std::int64_t run = (args.layout.time - shift) * args.layout.inner;
  double sum = 0;
  for (std::int64_t b = 0; b < args.layout.outer; ++b) {
    const std::int64_t start = b * args.layout.time * args.layout.inner;
    for (std::int64_t i = threadIdx.x; i < run;) {
      Real products = 0;
      for (std::int64_t end = i + kProducts * kTapThreads; i < run && i < end; i += kTapThreads) {
        products += load(load_global(args.grad + start + shift * args.layout.inner + i)) *
                    load(load_global(args.source + start + i));
      }
      sum += products;
    }
  }
  sums[threadIdx.x] = sum;
  for (int half = kTapThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) store_global(args.gradient + blockIdx.x, static_cast<Real>(sums[0]));
}

}  // namespace

void Cuda::run(const FilterCall& call) {
  const OnDeviceOf device(call.input);
  dispatch(call.input, [&](auto element) {
    using Storage = decltype(element);
    const Sweep<Storage, 1, 1> sweep{
        call.layout, call.reverse, {elements<Storage>(call.input)}, {mutable_elements<Storage>(call.output)}};
    const auto launch = StatefulLaunch<Storage>::of(sweep, call.kernel, call.input, device);
    const FilterArgs<Storage> args{sweep, launch.memory.device()};
    if (!launch.staged) {
      EXODUS_LAUNCH((filter_in_place<Storage>), launch.blocks, launch.threads, launch.shared_bytes(), device.stream(), args,
                    launch.walk_bytes);
    } else if (call.reverse) {
      EXODUS_LAUNCH((filter_staged<Storage, true>), launch.blocks, launch.threads, launch.shared_bytes(), device.stream(),
                    args, launch.walk_bytes, launch.unit);
    } else {
      EXODUS_LAUNCH((filter_staged<Storage, false>), launch.blocks, launch.threads, launch.shared_bytes(), device.stream(),
                    args, launch.walk_bytes, launch.unit);
    }
  });
}

void Cuda::run(const TapsGradientCall& call) {
  const OnDeviceOf device(call.grad);
  dispatch(call.grad, [&](auto element) {
    using Storage = decltype(element);
    using Real = compute_t<Storage>;
    const TapsArgs<Storage> args{call.layout, elements<Storage>(call.grad), elements<Storage>(call.source), call.delay,
                                 mutable_elements<Real>(call.gradient)};
    EXODUS_LAUNCH((taps_gradient_sums<Storage>), static_cast<unsigned int>(call.gradient.numel()), kTapThreads,
                  kTapThreads * static_cast<int>(sizeof(double)), device.stream(), args);
  });
}

}  // namespace exodus::cuda
