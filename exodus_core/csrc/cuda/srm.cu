// SRM neurons with any causal reset kernel on the GPU: one thread a lane, through time (6 to 8 and 22 of arXiv 2205.10242).
#include "backend.cuh"
#include "kernel_state.cuh"
#include "parameters.cuh"

namespace exodus::cuda {
namespace {

template <class Storage>
struct SrmForwardArgs {
  using Real = compute_t<Storage>;
  Sweep<Storage, 1, 2> sweep;  // psp -> membrane, spikes
  DeviceKernel<Real> kernel;
  DeviceParameter<Real> threshold;
};

template <class Storage>
struct SrmBackwardArgs {
  using Real = compute_t<Storage>;
  Sweep<Storage, 3, 1> sweep;  // membrane, grad_spikes, grad_membrane -> grad_psp
  DeviceKernel<Real> kernel;
  DeviceParameter<Real> threshold;
  Surrogate<Real> surrogate;
  Method method;
  Real* grad_threshold;  // one element a lane, or null
};

template <class Storage>
struct ForwardLane {
  using Real = compute_t<Storage>;
  KernelState<Real> reset;
  Real threshold;

  __device__ __forceinline__ ForwardLane(const SrmForwardArgs<Storage>& args, void* memory, std::int64_t lane)
      : reset(args.kernel, memory, lane, args.sweep.layout.lanes()),
        threshold(args.threshold.of(lane % args.sweep.layout.inner)) {}

  __device__ __forceinline__ void step(const Storage (&from)[1], Storage (&to)[2]) {
    Real spikes;
    to[0] = store<Storage>(srm_step<Storage>(load(from[0]), reset.response(), threshold, spikes));
    to[1] = store<Storage>(spikes);
    reset.push(spikes);
  }
};

template <class Storage>
struct BackwardLane {
  using Real = compute_t<Storage>;
  const SrmBackwardArgs<Storage>& args;
  KernelState<Real> reset;
  Real threshold;
  Real block_sum = 0;  // as in lif.cuh, a block of steps is summed before it adds to the total
  double total = 0;
  int steps = 0;

  __device__ __forceinline__ BackwardLane(const SrmBackwardArgs<Storage>& args, void* memory, std::int64_t lane)
      : args(args),
        reset(args.kernel, memory, lane, args.sweep.layout.lanes()),
        threshold(args.threshold.of(lane % args.sweep.layout.inner)) {}

  __device__ __forceinline__ void step(const Storage (&from)[3], Storage (&to)[1]) {
    const Real derivative = args.surrogate(load(from[0]), threshold);
    const Real adjoint = srm_adjoint_step(derivative, load(from[1]), load(from[2]), reset.response(), block_sum);
    to[0] = store<Storage>(adjoint);
    // Nothing remembered, the response stays zero.
    if (differentiates_reset(args.method)) reset.push(adjoint);
    if (++steps % 64 == 0) add_block();
  }
  __device__ __forceinline__ void add_block() {
    total += block_sum;
    block_sum = 0;
  }
  __device__ __forceinline__ void close(std::int64_t lane) {
    add_block();
    if (args.grad_threshold != nullptr) store_global(args.grad_threshold + lane, static_cast<Real>(total));
  }
};

template <class Storage>
__global__ void __launch_bounds__(kThreads) srm_forward_in_place(SrmForwardArgs<Storage> args, int walk_bytes) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (mine >= args.sweep.layout.lanes()) return;
  ForwardLane<Storage> lane(args, shared + walk_bytes, mine);
  sweep_in_place<1, kGroupOfLongSteps<Storage>>(
      args.sweep, mine, shared, step_by_step([&](const Storage(&from)[1], Storage(&to)[2]) { lane.step(from, to); }));
}

template <class Storage>
__global__ void __launch_bounds__(kStagedLanes) srm_forward_staged(SrmForwardArgs<Storage> args, int walk_bytes, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  ForwardLane<Storage> lane(args, shared + walk_bytes, block.lane());
  sweep_staged<false>(args.sweep, block, unit, shared,
                      step_by_step([&](const Storage(&from)[1], Storage(&to)[2]) { lane.step(from, to); }));
}

// The one block asked for keeps the compiler from choosing registers so few that it spills.
template <class Storage>
__global__ void __launch_bounds__(kThreads, 1)
    srm_backward_in_place(SrmBackwardArgs<Storage> args, int walk_bytes) {
  EXODUS_SHARED_MEMORY(shared);
  const std::int64_t mine = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (mine >= args.sweep.layout.lanes()) return;
  BackwardLane<Storage> lane(args, shared + walk_bytes, mine);
  sweep_in_place<1, kGroupOfLongSteps<Storage>>(
      args.sweep, mine, shared, step_by_step([&](const Storage(&from)[3], Storage(&to)[1]) { lane.step(from, to); }));
  lane.close(mine);
}

template <class Storage>
__global__ void __launch_bounds__(kStagedLanes, kMinBlocks<Storage, true>)
    srm_backward_staged(SrmBackwardArgs<Storage> args, int walk_bytes, int unit) {
  EXODUS_SHARED_MEMORY(shared);
  const StagedBlock block = StagedBlock::of(args.sweep.layout);
  BackwardLane<Storage> lane(args, shared + walk_bytes, block.lane());
  sweep_staged<true>(args.sweep, block, unit, shared,
                     step_by_step([&](const Storage(&from)[3], Storage(&to)[1]) { lane.step(from, to); }));
  if (block.has_thread()) lane.close(block.lane());
}

}  // namespace

void Cuda::run(const SrmForwardCall& call) {
  const OnDeviceOf device(call.psp);
  dispatch(call.psp, [&](auto element) {
    using Storage = decltype(element);
    const Sweep<Storage, 1, 2> sweep{call.layout,
                                     false,
                                     {elements<Storage>(call.psp)},
                                     {mutable_elements<Storage>(call.membrane), mutable_elements<Storage>(call.spikes)}};
    const auto launch = StatefulLaunch<Storage>::of(sweep, call.kernel, call.psp, device);
    const SrmForwardArgs<Storage> args{sweep, launch.memory.device(), on_device<compute_t<Storage>>(call.threshold)};
    if (launch.staged) {
      EXODUS_LAUNCH((srm_forward_staged<Storage>), launch.blocks, launch.threads, launch.shared_bytes(), device.stream(),
                    args, launch.walk_bytes, launch.unit);
    } else {
      EXODUS_LAUNCH((srm_forward_in_place<Storage>), launch.blocks, launch.threads, launch.shared_bytes(),
                    device.stream(), args, launch.walk_bytes);
    }
  });
}

void Cuda::run(const SrmBackwardCall& call) {
  const OnDeviceOf device(call.membrane);
  dispatch(call.membrane, [&](auto element) {
    using Storage = decltype(element);
    using Real = compute_t<Storage>;
    const Sweep<Storage, 3, 1> sweep{
        call.layout,
        true,
        {elements<Storage>(call.membrane), elements<Storage>(call.grad_spikes), elements<Storage>(call.grad_membrane)},
        {mutable_elements<Storage>(call.grad_psp)}};
    const auto launch = StatefulLaunch<Storage>::of(sweep, call.kernel, call.membrane, device);
    const SrmBackwardArgs<Storage> args{
        sweep,
        launch.memory.device(),
        on_device<Real>(call.threshold),
        call.surrogate.as<Real>(),
        call.method,
        call.grad_threshold.numel() > 0 ? mutable_elements<Real>(call.grad_threshold) : nullptr};
    if (launch.staged) {
      EXODUS_LAUNCH((srm_backward_staged<Storage>), launch.blocks, launch.threads, launch.shared_bytes(), device.stream(),
                    args, launch.walk_bytes, launch.unit);
    } else {
      EXODUS_LAUNCH((srm_backward_in_place<Storage>), launch.blocks, launch.threads, launch.shared_bytes(),
                    device.stream(), args, launch.walk_bytes);
    }
  });
}

}  // namespace exodus::cuda
