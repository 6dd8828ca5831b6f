// The LIF kernels with the settings of a plain neuron fixed, so that their walk through time has one path, whose
// instructions can be counted. cuda_work.py compiles this; nothing runs it.
#include "cuda/lif.cu"

namespace exodus::cuda {
namespace {

constexpr int kWidth = vector_width<float>();

__global__ void __launch_bounds__(kThreads) plain_forward(LifForwardArgs<float> args) {
  args.reset = Reset::subtract;
  args.neurons.max_spikes = 1;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (first >= args.sweep.layout.lanes()) return;
  ForwardLane<float> lanes[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) lanes[i] = lanes[i].of(args, first + i);
  sweep_in_place<kWidth>(args.sweep, first, [&](int i, const float(&from)[1], float(&to)[2]) {
    lanes[i].step(args.reset, from, to);
  });
}

template <SurrogateKind kind>
__global__ void __launch_bounds__(kThreads) plain_backward(LifBackwardArgs<float> args) {
  args.reset = Reset::subtract;
  args.method = Method::exodus;
  args.neurons.max_spikes = 1;
  args.surrogate.kind = kind;
  args.sweep.in[2] = nullptr;  // the loss reads the spikes
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (first >= args.sweep.layout.lanes()) return;
  BackwardLane<float, false> lanes[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) lanes[i].neuron = args.neurons.of(first + i, args.sweep.layout.inner);
  sweep_in_place<kWidth>(args.sweep, first, [&](int i, const float(&from)[3], float(&to)[1]) {
    lanes[i].step(args, from, to);
  });
}

template __global__ void plain_backward<SurrogateKind::exponential>(LifBackwardArgs<float>);
template __global__ void plain_backward<SurrogateKind::boxcar>(LifBackwardArgs<float>);
template __global__ void plain_backward<SurrogateKind::triangle>(LifBackwardArgs<float>);
template __global__ void plain_backward<SurrogateKind::fast_sigmoid>(LifBackwardArgs<float>);
template __global__ void plain_backward<SurrogateKind::sigmoid>(LifBackwardArgs<float>);
template __global__ void plain_backward<SurrogateKind::arctan>(LifBackwardArgs<float>);
template __global__ void plain_backward<SurrogateKind::tanh>(LifBackwardArgs<float>);
template __global__ void plain_backward<SurrogateKind::gaussian>(LifBackwardArgs<float>);

const auto launch_plain_forward = &plain_forward;  // else it would be left out

}  // namespace
}  // namespace exodus::cuda
