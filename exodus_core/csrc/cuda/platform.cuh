// The only file that knows the platform of the kernels: a GPU, or the emulation on the CPU with which they are tested
// (EXODUS_EMULATE, its compute capability; tests/cuda/emulator.h provides the same names).
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(EXODUS_EMULATE)

#include "emulator.h"

#define EXODUS_DISPATCH_KEY CPU

namespace exodus::cuda {

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return {}; }
  static constexpr int capability() { return EXODUS_EMULATE; }
  static constexpr bool copies_ahead() { return capability() >= 80; }
};

inline bool is_on_device(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }
inline constexpr const char* kDeviceName = "CPU (emulated CUDA)";

}  // namespace exodus::cuda

#else

#include <cuda_runtime.h>

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

#define EXODUS_DISPATCH_KEY CUDA

#define EXODUS_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

#define EXODUS_UNWRAP(...) __VA_ARGS__
#define EXODUS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)          \
  do {                                                                         \
    EXODUS_UNWRAP kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);  \
    ::exodus::cuda::check_launch(#kernel);                                     \
  } while (0)

namespace exodus::cuda {

// torch's own check, STD_CUDA_KERNEL_LAUNCH_CHECK, is not in the headers of every torch from 2.10 on.
inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "the kernel ", kernel, " was not launched: ", cudaGetErrorString(error));
}

// Makes the device of a tensor current during its lifetime, and has torch's stream on it.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream) == 0, "no current CUDA stream");
    return static_cast<cudaStream_t>(stream);
  }

  // The compute capability: 90 is 9.0.
  int capability() const {
    int major = 0;
    int minor = 0;
    cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index_);
    STD_TORCH_CHECK(error == cudaSuccess, "no compute capability: ", cudaGetErrorString(error));
    return 10 * major + minor;
  }
  // Whether kernels have asynchronous copies, and so need shared memory for them.
  bool copies_ahead() const { return capability() >= 80; }

 private:
  torch::stable::accelerator::DeviceIndex index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

inline bool is_on_device(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }
inline constexpr const char* kDeviceName = "CUDA";

}  // namespace exodus::cuda

#endif
