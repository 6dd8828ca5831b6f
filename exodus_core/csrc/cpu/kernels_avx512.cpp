// Row kernels for x86-64 processors with AVX-512 (the F, VL, BW and DQ parts).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(EXODUS_PORTABLE_ONLY)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,fma,f16c,prefer-vector-width=512")
#define EXODUS_VECTOR_BYTES 64
#include "simd.h"
#include "kernels.h"

#define EXODUS_INSTRUCTION_SET_NAME avx512
#define EXODUS_INSTRUCTION_SET_LABEL "avx512"
#include "kernels_impl.h"
#endif
