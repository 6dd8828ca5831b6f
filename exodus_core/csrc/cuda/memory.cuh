// Reads and writes of global memory, one element or a vector of neighbouring ones at a time, and asynchronous copies
// from there to shared memory. All of a kernel's traffic passes through here, so that the emulation can count it.
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

// Whether there are asynchronous copies, from compute capability 8.0 on.
#if defined(EXODUS_EMULATE)
constexpr bool kAsyncCopies = EXODUS_EMULATE >= 80;
#elif defined(__CUDA_ARCH__)
constexpr bool kAsyncCopies = __CUDA_ARCH__ >= 800;
#else
constexpr bool kAsyncCopies = true;
#endif

// A place in shared memory as the GPU's instructions take it, computed once from a pointer.
#if defined(EXODUS_EMULATE)
using SharedAddress = unsigned char*;
__device__ __forceinline__ SharedAddress shared_address(void* pointer) { return static_cast<unsigned char*>(pointer); }
#else
using SharedAddress = unsigned;
__device__ __forceinline__ SharedAddress shared_address(void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
#endif

// Starts to copy 4, 8 or 16 bytes from global to shared memory, both aligned to their number. `shared` has them for this
// thread once it has waited for them, for others after a barrier behind that.
template <int bytes>
__device__ __forceinline__ void copy_async([[maybe_unused]] SharedAddress shared, [[maybe_unused]] const void* global) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16, "an asynchronous copy has 4, 8 or 16 bytes");
#if defined(EXODUS_EMULATE)
  emulation::count_global_load(bytes);
  emulation::copy_async(shared, global, bytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(global), "n"(bytes) : "memory");
  }
#endif
}

// Reads 4, 8 or 16 bytes of shared memory. Stays behind the wait for copies that it stands behind.
template <class T>
__device__ __forceinline__ T load_shared([[maybe_unused]] SharedAddress address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "a load has 4, 8 or 16 bytes");
#if defined(EXODUS_EMULATE)
  return *reinterpret_cast<const T*>(address);
#else
  T value;
  if constexpr (sizeof(T) == 4) {
    std::uint32_t words[1];
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[0]) : "r"(address) : "memory");
    memcpy(&value, words, sizeof(T));
  } else if constexpr (sizeof(T) == 8) {
    std::uint32_t words[2];
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(address) : "memory");
    memcpy(&value, words, sizeof(T));
  } else {
    std::uint32_t words[4];
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
    memcpy(&value, words, sizeof(T));
  }
  return value;
#endif
}

// Closes a group of copies: those that this thread has started since its last group.
__device__ __forceinline__ void commit_copies() {
#if defined(EXODUS_EMULATE)
  emulation::commit_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `left` of this thread's groups are still under way, the last ones.
template <int left>
__device__ __forceinline__ void wait_for_copies() {
#if defined(EXODUS_EMULATE)
  emulation::wait_for_copies(left);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

}  // namespace exodus::cuda
