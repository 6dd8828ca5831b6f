// The response of a causal kernel to what is pushed, one lane a thread: the counterpart of csrc/cpu/kernel_state.h.
//
// What a lane remembers, the last inputs for taps and two values for each mode, lies in shared memory where that is large
// enough for a block, else in global memory that the host allocates. Neighbouring lanes are neighbours in both.
#pragma once

#include "../core/kernel.h"
#include "../operators.h"
#include "tiles.cuh"

namespace exodus::cuda {

constexpr int kMaxModes = 8;
constexpr std::int64_t kSharedBytes = 48 * 1024;  // what every architecture gives a block without asking

template <class Real>
struct DeviceMode {
  Real decay;
  Real constant;
  Real linear;
};

template <class Real>
struct DeviceKernel {
  const Real* taps;  // or null
  int length;        // of the taps, or the number of modes
  DeviceMode<Real> modes[kMaxModes];
  Real* memory;  // [slot][lane] of all lanes; null where shared memory is used

  __host__ __device__ int slots() const { return taps == nullptr ? 2 * length : length; }
};

template <class Real>
class KernelState {
 public:
  // `shared` is [slot][thread] of the block.
  __device__ __forceinline__ KernelState(const DeviceKernel<Real>& kernel, Real* shared, std::int64_t lane, std::int64_t lanes)
      : kernel_(kernel),
        memory_(kernel.memory == nullptr ? shared + threadIdx.x : kernel.memory + lane),
        stride_(kernel.memory == nullptr ? static_cast<std::int64_t>(blockDim.x) : lanes) {
    for (int slot = 0; slot < kernel.slots(); ++slot) put(slot, Real(0));
  }

  // The response after the last push; zero before the first.
  __device__ __forceinline__ Real response() const { return response_; }

  __device__ __forceinline__ void push(Real input) {
    response_ = kernel_.taps == nullptr ? by_modes(input) : by_taps(input);
  }

 private:
  // What lies in global memory passes through memory.cuh, to be counted.
  __device__ __forceinline__ Real get(int slot) const {
    const Real* address = memory_ + slot * stride_;
    return kernel_.memory == nullptr ? *address : load_global(address);
  }
  __device__ __forceinline__ void put(int slot, Real value) {
    Real* address = memory_ + slot * stride_;
    if (kernel_.memory == nullptr) {
      *address = value;
    } else {
      store_global(address, value);
    }
  }

  __device__ __forceinline__ Real by_taps(Real input) {
    newest_ = newest_ + 1 == kernel_.length ? 0 : newest_ + 1;
    put(newest_, input);
    Real response = 0;
    int slot = newest_;
    for (int k = 0; k < kernel_.length; ++k) {
      response += load_global(kernel_.taps + k) * get(slot);
      slot = slot == 0 ? kernel_.length - 1 : slot - 1;
    }
    return response;
  }

  __device__ __forceinline__ Real by_modes(Real input) {
    Real response = 0;
    for (int m = 0; m < kernel_.length; ++m) {
      const DeviceMode<Real>& mode = kernel_.modes[m];
      const Real before = get(2 * m);
      const Real q = linear_step(mode.decay, get(2 * m + 1), before);
      const Real p = exponential_step(mode.decay, before, input);
      put(2 * m, p);
      put(2 * m + 1, q);
      response += mode.constant * p + mode.linear * q;
    }
    return response;
  }

  const DeviceKernel<Real>& kernel_;
  Real* memory_;
  std::int64_t stride_;
  Real response_ = 0;
  int newest_ = -1;
};

// A kernel on the device for blocks of `threads`, whose tiles need `tile_bytes`; keeps the memory that it may need.
template <class Real>
class KernelMemory {
 public:
  KernelMemory(const CausalKernel& kernel, const Tensor& like, std::int64_t lanes, int threads, int tile_bytes)
      : device_{elements<Real>(kernel.taps), static_cast<int>(kernel.taps.has_value() ? kernel.length : static_cast<std::int64_t>(kernel.modes.size())),
                {}, nullptr} {
    STD_TORCH_CHECK(kernel.modes.size() <= kMaxModes, "a kernel may have ", kMaxModes, " exponentials on this device, got ",
                    kernel.modes.size());
    STD_TORCH_CHECK(kernel.length <= 1 << 30, "a kernel may have 2^30 taps, got ", kernel.length);
    std::transform(kernel.modes.begin(), kernel.modes.end(), device_.modes, [](const Mode& mode) {
      return DeviceMode<Real>{static_cast<Real>(mode.decay), static_cast<Real>(mode.constant), static_cast<Real>(mode.linear)};
    });
    const std::int64_t needed = static_cast<std::int64_t>(device_.slots()) * threads * static_cast<std::int64_t>(sizeof(Real));
    if (tile_bytes + needed <= kSharedBytes) {
      shared_bytes_ = static_cast<int>(needed);
    } else {
      scratch_ = torch::stable::new_empty(like, {device_.slots(), lanes}, compute_dtype(like));
      device_.memory = mutable_elements<Real>(*scratch_);
    }
  }

  const DeviceKernel<Real>& device() const { return device_; }
  int shared_bytes() const { return shared_bytes_; }

 private:
  DeviceKernel<Real> device_;
  OptionalTensor scratch_;
  int shared_bytes_ = 0;
};

}  // namespace exodus::cuda
