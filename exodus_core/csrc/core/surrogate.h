// Surrogate derivatives f'(u) as functions of x = u - threshold, for a slope k (docs/equations.md, section 4).
//
// Every exponential has an argument <= 0, so one exp for that range serves all: branch-free, the same bits on
// every instruction set, at most 2 units in the last place from the exact value.
#pragma once

#include <cstdint>

#include "macros.h"
#include "storage.h"

namespace exodus {

// The numbers are the `code` of the classes in surrogate.py.
enum class SurrogateKind : std::int64_t {
  exponential = 0,
  boxcar = 1,
  triangle = 2,
  fast_sigmoid = 3,
  sigmoid = 4,
  arctan = 5,
  tanh = 6,
  gaussian = 7,
};

// exp(x) for x <= 0: x = n ln 2 + r with abs(r) <= ln 2 / 2, a Taylor polynomial in r, and 2^n by its bits.
// The clamp is where 2^n stops being a normal number; the result stays there, at about 1e-38 (1e-308).
EXODUS_HOST_DEVICE float exp_nonpositive(float x) {
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves n in the low bits
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + round_to_integer;
  const float n = shifted - round_to_integer;
  const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const std::uint32_t exponent = bit_cast<std::uint32_t>(shifted) - bit_cast<std::uint32_t>(round_to_integer) + 127u;
  return p * bit_cast<float>(exponent << 23);
}

EXODUS_HOST_DEVICE double exp_nonpositive(double x) {
  constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
  const double clamped = x < -708.0 ? -708.0 : x;
  const double shifted = clamped * 1.4426950408889634 + round_to_integer;
  const double n = shifted - round_to_integer;
  const double r = (clamped - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const std::uint64_t exponent = bit_cast<std::uint64_t>(shifted) - bit_cast<std::uint64_t>(round_to_integer) + 1023u;
  return p * bit_cast<double>(exponent << 52);
}

// The derivative without the `scale` that multiplies it.
template <class Real>
EXODUS_HOST_DEVICE Real surrogate_derivative(SurrogateKind kind, Real x, Real slope) {
  const Real signed_a = slope * x;
  const Real a = signed_a < 0 ? -signed_a : signed_a;
  switch (kind) {
    case SurrogateKind::exponential:
      return exp_nonpositive(-a);
    case SurrogateKind::boxcar:
      return a <= Real(0.5) ? slope : Real(0);
    case SurrogateKind::triangle: {
      const Real height = Real(1) - a;
      return height < 0 ? Real(0) : height;
    }
    case SurrogateKind::fast_sigmoid: {
      const Real q = Real(1) / (Real(1) + a);
      return q * q;
    }
    case SurrogateKind::sigmoid: {
      const Real e = exp_nonpositive(-a);  // q (1 - q) is even, so abs(x) keeps the exponential small
      const Real q = Real(1) / (Real(1) + e);
      return slope * (e * q) * q;
    }
    case SurrogateKind::arctan: {
      const Real y = Real(1.5707963267948966) * a;
      return Real(0.5) * slope / (Real(1) + y * y);
    }
    case SurrogateKind::tanh: {
      const Real e = exp_nonpositive(Real(-2) * a);  // 1 - tanh^2 = 4 e / (1 + e)^2, without cancellation
      const Real q = Real(1) / (Real(1) + e);
      return Real(4) * (e * q) * q;
    }
    case SurrogateKind::gaussian:
      return slope * Real(0.3989422804014327) * exp_nonpositive(Real(-0.5) * a * a);
  }
  return Real(0);
}

}  // namespace exodus
