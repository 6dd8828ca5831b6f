// Declaration of a function of the shared arithmetic, for the host and for the device.
//
// It is always inlined on the host: the same function is compiled for several instruction sets in one
// library, and an out-of-line copy would let the linker pick any one of them. Where there is one only, in a library with
// mutants, every function is compiled once: with all mutants they are long.
#pragma once

#if defined(__CUDACC__)
#define EXODUS_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(EXODUS_PORTABLE_ONLY)
#define EXODUS_HOST_DEVICE inline
#else
#define EXODUS_HOST_DEVICE inline __attribute__((always_inline))
#endif
