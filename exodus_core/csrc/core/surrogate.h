// Surrogate derivatives f'(u) as functions of x = u - threshold, for a slope k (docs/equations.md, section 4).
//
// Every exponential has an argument <= 0, so one exp for that range serves all: branch-free, the same bits on
// every instruction set, at most 2 units in the last place from the exact value.
#pragma once

#include <cstdint>

#include "macros.h"
#include "scalar_math.h"
#include "dtypes.h"

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
// Real is a float, or a vector of floats.
template <class Real>
EXODUS_HOST_DEVICE Real exp_nonpositive_float(Real x) {
  using Integer = bits_t<Real>;
  constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves n in the low bits
  constexpr std::uint32_t its_bits = 0x4b400000u;
  const Real clamped = at_least(x, Real(-87.0f));
  const Real shifted = multiply_add(clamped, Real(1.44269504f), Real(round_to_integer));
  const Real n = shifted - Real(round_to_integer);
  const Real r = multiply_add(n, Real(-1.42860677e-6f), multiply_add(n, Real(-0.693145752f), clamped));
  const Real r2 = r * r;
  Real low = multiply_add(r, Real(1.0f / 6.0f), Real(0.5f));
  Real high = multiply_add(r, Real(1.0f / 5040.0f), Real(1.0f / 720.0f));
  low = multiply_add(r, low, Real(1.0f));
  high = multiply_add(r, high, Real(1.0f / 120.0f));
  low = multiply_add(r, low, Real(1.0f));
  high = multiply_add(r, high, Real(1.0f / 24.0f));
  const Real p = multiply_add(r2 * r2, high, low);
  const Integer exponent = bit_cast<Integer>(shifted) + Integer(127u - its_bits);
  return p * bit_cast<Real>(exponent << 23);
}

// The same for double.
template <class Real>
EXODUS_HOST_DEVICE Real exp_nonpositive_double(Real x) {
  using Integer = bits_t<Real>;
  constexpr double round_to_integer = 6755399441055744.0;  // 1.5 * 2^52
  constexpr std::uint64_t its_bits = 0x4338000000000000u;
  const Real clamped = at_least(x, Real(-708.0));
  const Real shifted = multiply_add(clamped, Real(1.4426950408889634), Real(round_to_integer));
  const Real n = shifted - Real(round_to_integer);
  const Real r =
      multiply_add(n, Real(-1.90821492927058770002e-10), multiply_add(n, Real(-0.693147180369123816490), clamped));
  Real p = Real(1.0 / 6227020800.0);
  p = multiply_add(p, r, Real(1.0 / 479001600.0));
  p = multiply_add(p, r, Real(1.0 / 39916800.0));
  p = multiply_add(p, r, Real(1.0 / 3628800.0));
  p = multiply_add(p, r, Real(1.0 / 362880.0));
  p = multiply_add(p, r, Real(1.0 / 40320.0));
  p = multiply_add(p, r, Real(1.0 / 5040.0));
  p = multiply_add(p, r, Real(1.0 / 720.0));
  p = multiply_add(p, r, Real(1.0 / 120.0));
  p = multiply_add(p, r, Real(1.0 / 24.0));
  p = multiply_add(p, r, Real(1.0 / 6.0));
  p = multiply_add(p, r, Real(0.5));
  p = multiply_add(p, r, Real(1.0));
  p = multiply_add(p, r, Real(1.0));
  const Integer exponent = bit_cast<Integer>(shifted) + Integer(1023u - its_bits);
  return p * bit_cast<Real>(exponent << 52);
}

EXODUS_HOST_DEVICE float exp_nonpositive(float x) { return exp_nonpositive_float(x); }
EXODUS_HOST_DEVICE double exp_nonpositive(double x) { return exp_nonpositive_double(x); }

// f'(u) as a function of x = u - threshold, without the `scale` that multiplies it.
template <class Real>
EXODUS_HOST_DEVICE Real surrogate_derivative(SurrogateKind kind, Real x, Real slope) {
  const Real a = magnitude(slope * x);
  switch (kind) {
    case SurrogateKind::exponential:
      return exp_nonpositive(-a);
    case SurrogateKind::boxcar:
      return select(a > Real(0.5), Real(0), select(a <= Real(0.5), slope, a));  // NaN is neither
    case SurrogateKind::triangle: {
      const Real height = Real(1) - a;
      return select(height < Real(0), Real(0), height);
    }
    case SurrogateKind::fast_sigmoid: {
      const Real q = reciprocal(Real(1) + a);
      return q * q;
    }
    case SurrogateKind::sigmoid: {
      const Real e = exp_nonpositive(-a);  // q (1 - q) is even, so abs(x) keeps the exponential small
      const Real q = reciprocal(Real(1) + e);
      return slope * (e * q) * q;
    }
    case SurrogateKind::arctan: {
      const Real y = Real(1.5707963267948966) * a;
      return Real(0.5) * slope / (Real(1) + y * y);
    }
    case SurrogateKind::tanh: {
      const Real e = exp_nonpositive(Real(-2) * a);  // 1 - tanh^2 = 4 e / (1 + e)^2, without cancellation
      const Real q = reciprocal(Real(1) + e);
      return Real(4) * (e * q) * q;
    }
    case SurrogateKind::gaussian:
      return slope * Real(0.3989422804014327) * exp_nonpositive(Real(-0.5) * a * a);
  }
  return Real(0);
}

// f'(u) of a neuron with a threshold.
template <class Real>
EXODUS_HOST_DEVICE Real scaled_surrogate(SurrogateKind kind, Real slope, Real scale, Real membrane, Real threshold) {
  return scale * surrogate_derivative(kind, membrane - threshold, slope);
}

// The surrogate of a call.
template <class Real>
struct Surrogate {
  SurrogateKind kind;
  Real slope;
  Real scale;

  template <class To>
  Surrogate<To> as() const {
    return {kind, static_cast<To>(slope), static_cast<To>(scale)};
  }

  EXODUS_HOST_DEVICE Real operator()(Real membrane, Real threshold) const {
    return scaled_surrogate(kind, slope, scale, membrane, threshold);
  }
};

}  // namespace exodus
