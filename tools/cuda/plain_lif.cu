// The LIF kernels with the settings of a plain neuron fixed, so that their walk through time has one path, whose
// instructions can be counted. counts.py compiles this; nothing runs it.
#include "cuda/lif.cu"

namespace exodus::cuda {

constexpr int kPlainWidth = vector_width<float>();

__global__ void __launch_bounds__(kThreads) plain_forward(LifForwardArgs<float> args) {
  args.reset = Reset::subtract;
  args.neurons.max_spikes = 1;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPlainWidth;
  if (first >= args.sweep.layout.lanes()) return;
  const std::int64_t column = first % args.sweep.layout.inner;
  ForwardLane<float> lanes[kPlainWidth];
#pragma unroll
  for (int i = 0; i < kPlainWidth; ++i) lanes[i] = lanes[i].of(args, first + i, column + i);
  sweep_in_place<kPlainWidth>(args.sweep, first, [&](int i, const float(&from)[1], float(&to)[2]) {
    lanes[i].step(args.reset, from, to);
  });
}

template <int kind>
__global__ void __launch_bounds__(kThreads) plain_backward(LifBackwardArgs<float> args) {
  args.reset = Reset::subtract;
  args.method = Method::exodus;
  args.neurons.max_spikes = 1;
  args.surrogate.kind = static_cast<SurrogateKind>(kind);
  args.sweep.in[2] = nullptr;  // the loss reads the spikes
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPlainWidth;
  if (first >= args.sweep.layout.lanes()) return;
  const std::int64_t column = first % args.sweep.layout.inner;
  BackwardLane<float, false> lanes[kPlainWidth];
#pragma unroll
  for (int i = 0; i < kPlainWidth; ++i) lanes[i].neuron = args.neurons.of(column + i);
  sweep_in_place<kPlainWidth>(args.sweep, first, [&](int i, const float(&from)[3], float(&to)[1]) {
    lanes[i].step(args, from, to);
  });
}

template __global__ void plain_backward<0>(LifBackwardArgs<float>);
template __global__ void plain_backward<1>(LifBackwardArgs<float>);
template __global__ void plain_backward<2>(LifBackwardArgs<float>);
template __global__ void plain_backward<3>(LifBackwardArgs<float>);
template __global__ void plain_backward<4>(LifBackwardArgs<float>);
template __global__ void plain_backward<5>(LifBackwardArgs<float>);
template __global__ void plain_backward<6>(LifBackwardArgs<float>);
template __global__ void plain_backward<7>(LifBackwardArgs<float>);

}  // namespace exodus::cuda
