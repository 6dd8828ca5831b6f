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
