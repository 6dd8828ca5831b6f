// Causal kernels as sums of modes (constant + linear k) decay^k: exponentials have linear = 0, alpha functions
// constant = 0 (equation 3 of arXiv 2205.10242). A mode is a linear recurrence of order one or two.
#pragma once

#include "macros.h"

namespace exodus {

struct Mode {
  double decay;
  double constant;
  double linear;
};

// p[n] = sum over k of decay^k x[n-k]
template <class Real>
EXODUS_HOST_DEVICE Real exponential_step(Real decay, Real p, Real input) {
  return decay * p + input;
}

// q[n] = sum over k of k decay^k x[n-k], from q and p of n-1
template <class Real>
EXODUS_HOST_DEVICE Real linear_step(Real decay, Real q, Real p) {
  return decay * (q + p);
}

}  // namespace exodus
