// Parameters of a call as kernel arguments: numbers, and pointers to values that differ between lanes.
#pragma once

#include "../operators.h"
#include "memory.cuh"

namespace exodus::cuda {

// A parameter of the neurons: one number, or a tensor with one element or one for each inner index.
template <class Real>
struct DeviceParameter {
  Real value;
  const Real* values;  // null: the number
  bool shared;         // the tensor has one element

  // `column` is the inner index of a lane.
  __device__ __forceinline__ Real of(std::int64_t column) const {
    return values == nullptr ? value : load_global(values + (shared ? 0 : column));
  }
};

// A value a lane; zero if it is not given.
template <class Real>
__device__ __forceinline__ Real lane_value(const Real* values, std::int64_t lane) {
  return values == nullptr ? Real(0) : load_global(values + lane);
}

template <class Real>
DeviceParameter<Real> on_device(const Parameter& parameter) {
  const bool given = parameter.tensor.has_value();
  return {static_cast<Real>(parameter.value), elements<Real>(parameter.tensor),
          given && parameter.tensor->numel() == 1};
}

}  // namespace exodus::cuda
