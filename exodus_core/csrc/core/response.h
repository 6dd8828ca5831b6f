// One step of a causal kernel that is a recurrence (docs/equations.md, section 3; equations 3 and 5 of arXiv 2205.10242).
#pragma once

#include "macros.h"

namespace exodus {

// A kernel (constant + linear k) decay^k, k = 0, 1, ...: exponentials have linear = 0, alpha functions constant = 0.
struct Mode {
  double decay;
  double constant;
  double linear;
};

// The response to `input` and all that came before it, for linear = 0: p[n] = decay p[n-1] + input.
template <class Real>
EXODUS_HOST_DEVICE Real respond(Real decay, Real constant, Real input, Real& p) {
  p = decay * p + input;
  return constant * p;
}

// The same for any linear: q[n] = decay (q[n-1] + p[n-1]) besides.
template <class Real>
EXODUS_HOST_DEVICE Real respond(Real decay, Real constant, Real linear, Real input, Real& p, Real& q) {
  q = decay * (q + p);
  return respond(decay, constant, input, p) + linear * q;
}

}  // namespace exodus
