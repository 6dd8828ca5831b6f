// Row kernels for x86-64 processors with AVX2 and F16C.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(EXODUS_PORTABLE_ONLY)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#pragma GCC target("avx2,fma,f16c")
#define EXODUS_VECTOR_BYTES 32
#include "simd.h"
#include "kernels.h"

#define EXODUS_INSTRUCTION_SET_NAME avx2
#define EXODUS_INSTRUCTION_SET_LABEL "avx2"
#include "kernels_impl.h"
#endif
