// One step of one neuron, forward (docs/equations.md, section 2; equations 3, 4 and 26 of arXiv 2205.10242).
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace exodus {

// What a spike does to the next membrane. The numbers are those of _RESETS in arguments.py.
enum class Reset : std::int64_t {
  none = 0,
  subtract = 1,          // u[t] = alpha u[t-1] + x[t] - rho s[t-1]
  subtract_decayed = 2,  // u[t] = alpha (u[t-1] - rho s[t-1]) + x[t]
  zero = 3,              // u[t] = alpha u[t-1] (1 - s[t-1]) + x[t]
};

// What alpha multiplies: d u[t+1] / d alpha.
template <Reset reset, class Real>
EXODUS_HOST_DEVICE Real retained(Real membrane, Real spikes, Real reset_by) {
  if constexpr (reset == Reset::subtract_decayed) {
    return membrane - reset_by * spikes;
  } else if constexpr (reset == Reset::zero) {
    return membrane * (Real(1) - spikes);
  } else {
    return membrane;
  }
}

// u[t] from u[t-1], s[t-1] and x[t], before the lower bound.
template <Reset reset, class Real>
EXODUS_HOST_DEVICE Real integrate(Real membrane, Real spikes, Real input, Real alpha, Real reset_by) {
  const Real decayed = alpha * retained<reset>(membrane, spikes, reset_by) + input;
  return reset == Reset::subtract ? decayed - reset_by * spikes : decayed;
}

// u[n] of an SRM neuron from z[n] and the response of the reset kernel to its earlier spikes (7).
template <class Real>
EXODUS_HOST_DEVICE Real reset_by_kernel(Real psp, Real response) {
  return psp + response;
}

// The lower bound. A membrane on the bound counts as clipped; NaN is not a bound's business and stays NaN.
template <class Real>
EXODUS_HOST_DEVICE Real clip(Real membrane, Real min_membrane) {
  return membrane < min_membrane ? min_membrane : membrane;
}

template <class Real>
EXODUS_HOST_DEVICE bool is_clipped(Real membrane, Real min_membrane) {
  return membrane <= min_membrane;
}

// s[t] = 1 where u[t] >= theta (4).
template <class Real>
EXODUS_HOST_DEVICE Real fire_once(Real membrane, Real threshold) {
  return membrane >= threshold ? Real(1) : Real(0);
}

// s[t] = floor(u[t] / theta), between 0 and max_spikes.
template <class Real>
EXODUS_HOST_DEVICE Real fire_many(Real membrane, Real threshold, Real max_spikes) {
  const Real count = std::floor(membrane / threshold);
  const Real positive = count > 0 ? count : Real(0);
  return positive < max_spikes ? positive : max_spikes;
}

}  // namespace exodus
