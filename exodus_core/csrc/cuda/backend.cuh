// The CUDA backend of operators.h.
#pragma once

#include "../operators.h"
#include "platform.cuh"

namespace exodus::cuda {

struct Cuda {
  static constexpr const char* kDevice = kDeviceName;
  static constexpr bool kFollows = false;
  static constexpr bool kReadsConstantInputs = false;
  static bool is_on_device(const Tensor& tensor) { return exodus::cuda::is_on_device(tensor); }
  static Tensor empty_like(const Tensor& tensor) { return torch::stable::empty_like(tensor); }

  static void run(const LifForwardCall& call);
  static void run(const LifBackwardCall& call);
  static void run(const CoupledForwardCall& call);
  static void run(const CoupledBackwardCall& call);
  static void run(const CoupledTracesCall& call);
  static void run(const SrmForwardCall& call);
  static void run(const SrmBackwardCall& call);
  static void run(const FilterCall& call);
  static void run(const TapsGradientCall& call);
};

}  // namespace exodus::cuda
