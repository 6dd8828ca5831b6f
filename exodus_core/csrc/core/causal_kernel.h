// Causal kernels as sums of modes (constant + linear k) decay^k: exponentials have linear = 0, alpha functions
// constant = 0 (equation 3 of arXiv 2205.10242). A mode is a linear recurrence of order one or two.
//
// Its constants and its state are double for every dtype of the signal: a decay that is rounded to float and raised to the
// power of thousands of steps is another decay, and the rounding errors of a slow mode add up.
#pragma once

#include "macros.h"
#include "scalar_math.h"

namespace exodus {

struct Mode {
  double decay;
  double constant;
  double linear;
  double least;  // the past may count as zero once p and q are below this

  EXODUS_HOST_DEVICE bool has_linear() const { return linear != 0; }
};

// A mode for signals computed in Real: its past is over once it adds less to the response than the smallest normal
// number at any later step, and not before p and q are that small themselves. In k steps p becomes k decay^k of q, which
// is below 1 / (1 - decay) for every k, as log(decay) <= decay - 1.
template <class Real>
Mode mode_of(double decay, double constant, double linear) {
  const double rate = at_least(1.0 - decay, kSmallestNormal<double>);
  const double largest = at_least(magnitude(constant) + magnitude(linear) * (1.0 + 1.0 / rate), 1.0);
  return {decay, constant, linear, at_least(kSmallestNormal<Real> / largest, kSmallestNormal<double>)};
}

// p[n] = sum over k of decay^k x[n-k], and q[n] = sum over k of k decay^k x[n-k], from those of n-1. Real is double, or
// a vector of doubles. Returns the share of the mode in the response.
template <class Real>
EXODUS_HOST_DEVICE Real exponential_step(Real decay, Real constant, Real input, Real& p) {
  p = decay * p + input;
  return constant * p;
}

template <class Real>
EXODUS_HOST_DEVICE Real linear_step(Real decay, Real constant, Real linear, Real input, Real& p, Real& q) {
  q = decay * (q + p);
  p = decay * p + input;
  return constant * p + linear * q;
}

// Adds the share of one tap in the response, to what was pushed so many steps before.
template <class Real>
EXODUS_HOST_DEVICE void add_tap(Real tap, Real pushed, Real& response) {
  response += tap * pushed;
}

// Flushes a faded state to zero, once in so many steps: in between, it cannot get far into the subnormal numbers, with
// which processors compute a hundred times slower, and which rounding would keep from ever reaching zero.
constexpr int kFadeSteps = 64;

template <class Real>
EXODUS_HOST_DEVICE void forget_faded(Real least, Real& p, Real& q) {
  const auto faded = magnitude(p) + magnitude(q) < least;
  p = select(faded, Real(0), p);
  q = select(faded, Real(0), q);
}

}  // namespace exodus
