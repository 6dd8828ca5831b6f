// The response of a causal kernel to what is pushed, one lane a thread: the counterpart of csrc/cpu/kernel_state.h.
//
// The state of a lane, the last inputs for taps and two doubles for each mode, lies in shared memory if that is large
// enough for a block, else in global memory that the host allocates. Neighbouring lanes are neighbours in both.
#pragma once

#include "../core/causal_kernel.h"
#include "../operators.h"
#include "staged.cuh"

namespace exodus::cuda {

constexpr int kMaxModes = 8;

template <class Real>
struct DeviceKernel {
  const Real* taps;  // or null
  int length;        // of the taps, or the number of modes
  Mode modes[kMaxModes];
  void* memory;  // [slot][lane] of all lanes; null if shared memory is used

  __host__ __device__ int slots() const { return taps == nullptr ? 2 * length : length; }
  __host__ __device__ int slot_bytes() const {
    return static_cast<int>(taps == nullptr ? sizeof(double) : sizeof(Real));
  }
};

template <class Real>
class KernelState {
 public:
  // `shared` is [slot][thread] of the block.
  __device__ __forceinline__ KernelState(const DeviceKernel<Real>& kernel, void* shared, std::int64_t lane, std::int64_t lanes)
      : kernel_(kernel),
        memory_(kernel.memory == nullptr ? shared : kernel.memory),
        column_(kernel.memory == nullptr ? static_cast<std::int64_t>(threadIdx.x) : lane),
        stride_(kernel.memory == nullptr ? static_cast<std::int64_t>(blockDim.x) : lanes) {
    if (kernel.taps != nullptr) return;  // only what was pushed is read
    for (int slot = 0; slot < kernel.slots(); ++slot) put(slot, 0.0);
  }

  // The response after the last push; zero before the first.
  __device__ __forceinline__ Real response() const { return response_; }

  __device__ __forceinline__ void push(Real input) {
    response_ = kernel_.taps == nullptr ? static_cast<Real>(by_modes(static_cast<double>(input))) : by_taps(input);
  }

 private:
  // Accesses to global memory go through memory.cuh, to be counted.
  template <class Value>
  __device__ __forceinline__ Value get(int slot) const {
    const Value* address = static_cast<const Value*>(memory_) + slot * stride_ + column_;
    return kernel_.memory == nullptr ? *address : load_global(address);
  }
  template <class Value>
  __device__ __forceinline__ void put(int slot, Value value) {
    Value* address = static_cast<Value*>(memory_) + slot * stride_ + column_;
    if (kernel_.memory == nullptr) {
      *address = value;
    } else {
      store_global(address, value);
    }
  }

  // The last inputs lie in a ring; the oldest is added first, as in the plain loop.
  __device__ __forceinline__ Real by_taps(Real input) {
    const int length = kernel_.length;
    newest_ = newest_ + 1 == length ? 0 : newest_ + 1;
    known_ = known_ < length ? known_ + 1 : length;
    put(newest_, input);
    Real response = 0;
    int slot = known_ < length || newest_ + 1 == length ? 0 : newest_ + 1;
    for (int k = known_ - 1; k >= 0; --k) {
      add_tap(load_global(kernel_.taps + k), get<Real>(slot), response);
      slot = slot + 1 == length ? 0 : slot + 1;
    }
    return response;
  }

  __device__ __forceinline__ double by_modes(double input) {
    double response = 0;
    const bool forget = pushed_ == 0;
    pushed_ = pushed_ + 1 == kFadeSteps ? 0 : pushed_ + 1;
    for (int m = 0; m < kernel_.length; ++m) {
      const Mode& mode = kernel_.modes[m];
      double p = get<double>(2 * m);
      double q = mode.has_linear() ? get<double>(2 * m + 1) : 0.0;
      if (forget) forget_faded(mode.least, p, q);
      if (mode.has_linear()) {
        response += linear_step(mode.decay, mode.constant, mode.linear, input, p, q);
        put(2 * m + 1, q);
      } else {
        response += exponential_step(mode.decay, mode.constant, input, p);
      }
      put(2 * m, p);
    }
    return response;
  }

  const DeviceKernel<Real>& kernel_;
  void* memory_;
  std::int64_t column_;
  std::int64_t stride_;
  Real response_ = 0;
  int newest_ = -1;  // taps: the slot of the last input
  int known_ = 0;    // and how many there are
  int pushed_ = 0;   // modes: steps since a past was last forgotten
};

// A kernel on the device for blocks of `threads`, of whose shared memory `taken` bytes have another use; keeps the memory
// that it may need.
template <class Real>
class KernelMemory {
 public:
  KernelMemory(const CausalKernel& kernel, const Tensor& like, std::int64_t lanes, int threads, int taken)
      : device_{elements<Real>(kernel.taps), static_cast<int>(kernel.taps.has_value() ? kernel.length : static_cast<std::int64_t>(kernel.modes.size())),
                {}, nullptr} {
    STD_TORCH_CHECK(kernel.modes.size() <= kMaxModes, "kernel must be of at most ", kMaxModes,
                    " exponentials on this device, got ", kernel.modes.size());
    STD_TORCH_CHECK(kernel.length <= 1 << 30, "kernel must be of at most 2^30 taps, got ", kernel.length);
    std::copy(kernel.modes.begin(), kernel.modes.end(), device_.modes);
    const std::int64_t needed = static_cast<std::int64_t>(device_.slots()) * threads * device_.slot_bytes();
    if (taken + needed <= kSharedBytes) {
      shared_bytes_ = static_cast<int>(needed);
    } else {
      const ScalarType kept = kernel.taps.has_value() ? compute_dtype(like) : ScalarType::Double;
      scratch_ = torch::stable::new_empty(like, {device_.slots(), lanes}, kept);
      device_.memory = scratch_->mutable_data_ptr();
    }
  }

  const DeviceKernel<Real>& device() const { return device_; }
  int shared_bytes() const { return shared_bytes_; }

 private:
  DeviceKernel<Real> device_;
  OptionalTensor scratch_;
  int shared_bytes_ = 0;
};

// The launch of a walk in which every lane has the state of a kernel. It lies behind the ring or the tiles of the walk.
template <class Storage>
struct StatefulLaunch {
  bool staged;
  unsigned int blocks;
  int threads;
  int walk_bytes;  // shared memory of the walk
  int unit;        // staged
  KernelMemory<compute_t<Storage>> memory;

  template <int inputs, int outputs>
  static StatefulLaunch of(const Sweep<Storage, inputs, outputs>& sweep, const CausalKernel& kernel, const Tensor& like,
                           const OnDeviceOf& device) {
    using Memory = KernelMemory<compute_t<Storage>>;
    const Layout& layout = sweep.layout;
    if (layout.inner < kMinInPlaceLanes) {
      const int tiles = staged_bytes(layout, sweep.given(), outputs);
      return {true, staged_blocks(layout), kStagedLanes, tiles, staged_unit(sweep),
              Memory(kernel, like, layout.lanes(), kStagedLanes, tiles)};
    }
    const int ring = ring_bytes<1, kGroupOfLongSteps<Storage>>(sweep, device);
    return {false, blocks_for(layout.lanes(), kThreads), kThreads, ring, 0,
            Memory(kernel, like, layout.lanes(), kThreads, ring)};
  }

  int shared_bytes() const { return walk_bytes + memory.shared_bytes(); }
};

}  // namespace exodus::cuda
