// What the arithmetic does beside + - * /, for one number. csrc/cpu/lanes.h has the same for several side by side.
#pragma once

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

// abs(x)
template <class Real>
EXODUS_HOST_DEVICE Real magnitude(Real x) {
  return select(x < Real(0), -x, x);
}

}  // namespace exodus
