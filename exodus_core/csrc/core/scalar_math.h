// Elementary functions of one number besides + - * /. csrc/cpu/simd.h has the same for a vector of numbers.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace exodus {

// The unsigned integer that holds the bits of a number.
template <class Real>
struct Bits;
template <>
struct Bits<float> {
  using type = std::uint32_t;
};
template <>
struct Bits<double> {
  using type = std::uint64_t;
};
template <class Real>
using bits_t = typename Bits<Real>::type;

// condition ? a : b
template <class Real>
EXODUS_HOST_DEVICE Real select(bool condition, Real a, Real b) {
  return condition ? a : b;
}

// a b + c, rounded once. Processors without such an instruction take a long way to the same bits.
template <class Real>
EXODUS_HOST_DEVICE Real multiply_add(Real a, Real b, Real c) {
  using std::fma;
  return fma(a, b, c);
}

// The larger of the two; NaN where x is.
template <class Real>
EXODUS_HOST_DEVICE Real at_least(Real x, Real bound) {
  return x < bound ? bound : x;
}

// abs(x)
template <class Real>
EXODUS_HOST_DEVICE Real magnitude(Real x) {
  using std::fabs;
  return fabs(x);
}

// 1 / x of a number of at least 1, or NaN. A result of 2^-126 or less may be 0.
template <class Real>
EXODUS_HOST_DEVICE Real reciprocal(Real x) {
  return Real(1) / x;
}

EXODUS_HOST_DEVICE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  // What nvcc makes of 1 / x, without its branch for subnormal and huge numbers: four of these overlap.
  float near;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(x));
  const float exact = multiply_add(near, -multiply_add(x, near, -1.0f), near);
  return select(x >= 8.507059173e37f, 0.0f, exact);  // 2^126
#else
  return 1.0f / x;
#endif
}

// The smallest number of full precision; those below it are subnormal.
template <class Real>
struct SmallestNormal;
template <>
struct SmallestNormal<float> {
  static constexpr float value = 1.17549435e-38f;
};
template <>
struct SmallestNormal<double> {
  static constexpr double value = 2.2250738585072014e-308;
};
template <class Real>
constexpr auto kSmallestNormal = SmallestNormal<Real>::value;

}  // namespace exodus
