// Reads and writes of global memory, one element or a vector of neighbouring ones at a time. All of a kernel's traffic
// passes through here, so that the emulation can count it.
#pragma once

#include <cstdint>

#include "../core/dtypes.h"
#include "platform.cuh"

namespace exodus::cuda {

template <class T, int width>
struct alignas(sizeof(T) * width) Vector {
  T at[width];
};

template <class T>
__device__ __forceinline__ T load_global(const T* address) {
#if defined(EXODUS_EMULATE)
  emulation::count_global_load(sizeof(T));
#endif
  return *address;
}

template <class T>
__device__ __forceinline__ void store_global(T* address, T value) {
#if defined(EXODUS_EMULATE)
  emulation::count_global_store(sizeof(T));
#endif
  *address = value;
}

template <int width, class T>
__device__ __forceinline__ Vector<T, width> load_vector(const T* address) {
  return load_global(reinterpret_cast<const Vector<T, width>*>(address));
}

template <int width, class T>
__device__ __forceinline__ void store_vector(T* address, Vector<T, width> value) {
  store_global(reinterpret_cast<Vector<T, width>*>(address), value);
}

}  // namespace exodus::cuda
