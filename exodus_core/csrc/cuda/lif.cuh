// The arguments of a LIF call on the device, shared by the LIF kernels.
#pragma once

#include <type_traits>

#include "parameters.cuh"
#include "sweep.cuh"

namespace exodus::cuda {

// Calls run(kind), known when compiled.
template <class Run>
__device__ __forceinline__ void with_kind(SurrogateKind kind, Run run) {
  switch (kind) {
    case SurrogateKind::exponential:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::exponential>{});
    case SurrogateKind::boxcar:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::boxcar>{});
    case SurrogateKind::triangle:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::triangle>{});
    case SurrogateKind::fast_sigmoid:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::fast_sigmoid>{});
    case SurrogateKind::sigmoid:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::sigmoid>{});
    case SurrogateKind::arctan:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::arctan>{});
    case SurrogateKind::tanh:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::tanh>{});
    case SurrogateKind::gaussian:
      return run(std::integral_constant<SurrogateKind, SurrogateKind::gaussian>{});
  }
}

template <class Storage>
struct DeviceNeurons {
  using Real = compute_t<Storage>;
  DeviceParameter<Real> alpha;
  DeviceParameter<Real> threshold;
  DeviceParameter<Real> reset_by;
  DeviceParameter<Real> min_membrane;
  Real max_spikes;
  bool bound_after_reset;

  explicit DeviceNeurons(const LifParameters& parameters)
      : alpha(on_device<Real>(parameters.alpha)),
        threshold(on_device<Real>(parameters.threshold)),
        reset_by(on_device<Real>(parameters.reset_by)),
        min_membrane(on_device<Real>(parameters.min_membrane)),
        max_spikes(static_cast<Real>(parameters.max_spikes)),
        bound_after_reset(parameters.bound_after_reset) {}

  __device__ __forceinline__ LifNeuron<Real> of(std::int64_t column) const {
    // The bound is rounded as the membrane will be: one that was raised to it must be seen to lie on it.
    return {alpha.of(column), threshold.of(column), reset_by.of(column), as_stored<Storage>(min_membrane.of(column)),
            max_spikes};
  }
};

template <class Storage>
struct LifForwardArgs {
  using Real = compute_t<Storage>;
  Sweep<Storage, 1, 2> sweep;  // input -> membrane, spikes
  DeviceNeurons<Storage> neurons;
  Reset reset;
  const Real* initial_membrane;
  const Real* initial_spikes;
};

template <class Storage>
struct LifBackwardArgs {
  using Real = compute_t<Storage>;
  Sweep<Storage, 3, 1> sweep;  // membrane, grad_spikes, grad_membrane -> grad_input
  DeviceNeurons<Storage> neurons;
  Reset reset;
  Surrogate<Real> surrogate;
  Method method;
  const Real* initial_membrane;
  const Real* initial_spikes;
  Real* lane_gradients;  // the kLaneGradients rows, or null

  // Calls use(k, i, step) for the steps [step][lane][input] of some lanes, in the order of the walk. Which surrogate it is
  // is asked once for all of them.
  template <bool with_sums, int steps, int width, class Use>
  __device__ __forceinline__ void for_each(const LifNeuron<Real>* const (&lanes)[width],
                                           const Storage (&x)[steps][width][3], Use use) const {
    LifStep<Real> known[steps][width];
#pragma unroll
    for (int k = 0; k < steps; ++k) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const Storage(&from)[3] = x[k][i];
        known[k][i] = {load(from[0]), Real(0), Real(0), load(from[1]), load(from[2])};
      }
    }
    const auto set = [&](auto kind) {
#pragma unroll
      for (int k = 0; k < steps; ++k) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          LifStep<Real>& step = known[k][i];
          step.surrogate =
              scaled_surrogate(kind.value, surrogate.slope, surrogate.scale, step.membrane, lanes[i]->threshold);
        }
      }
    };
    with_kind(surrogate.kind, set);
    if (with_sums || reset == Reset::zero || neurons.bound_after_reset) {
#pragma unroll
      for (int k = 0; k < steps; ++k) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          LifStep<Real>& step = known[k][i];
          step.spikes = fire(lanes[i]->max_spikes > 1, step.membrane, lanes[i]->threshold, lanes[i]->max_spikes);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < steps; ++k) {
#pragma unroll
      for (int i = 0; i < width; ++i) use(k, i, known[k][i]);
    }
  }

  // Closes the pass of one lane at t = -1 and writes its gradients.
  __device__ __forceinline__ void close(const LifNeuron<Real>& neuron, std::int64_t lane, Real first,
                                        const LifSums<double>& sums) const {
    LifSums<Real> last{};
    const LifInitialGradient<Real> initial =
        lif_adjoint_initial(method, reset, neurons.bound_after_reset, neuron, lane_value(initial_membrane, lane),
                            lane_value(initial_spikes, lane), first, last);
    const double alpha = static_cast<double>(neuron.alpha);
    const double by_reset_sum = by_reset(reset, alpha, sums.reset_by + last.reset_by);
    const double by_bound_sum =
        by_bound(neurons.bound_after_reset, reset, alpha, sums.min_membrane + last.min_membrane);
    Real values[kLaneGradients];
    values[kInitialMembrane] = initial.membrane;
    values[kInitialSpikes] = initial.spikes;
    values[kAlpha] = static_cast<Real>(sums.alpha + last.alpha);
    values[kThreshold] = static_cast<Real>(sums.threshold);
    values[kResetBy] = static_cast<Real>(by_reset_sum);
    values[kMinMembrane] = static_cast<Real>(by_bound_sum);
#pragma unroll
    for (int k = 0; k < kLaneGradients; ++k) store_global(lane_gradients + k * sweep.layout.lanes() + lane, values[k]);
  }
};

// Sums a block of steps in Real before it adds to a total in double: the rounding error does not grow with the number of
// steps.
template <class Real>
struct BlockSums {
  static constexpr int kBlock = 64;

  LifSums<Real> block{};
  LifSums<double> total{};
  int steps = 0;

  __device__ __forceinline__ void count_step() {
    if (++steps == kBlock) add_block();
  }
  __device__ __forceinline__ void add_block() {
    total += block;
    block = {};
    steps = 0;
  }
};

// lif_chunks.cu
template <class Storage, bool with_sums>
void lif_backward_by_chunks(const LifBackwardArgs<Storage>& args, const OnDeviceOf& device);

}  // namespace exodus::cuda
