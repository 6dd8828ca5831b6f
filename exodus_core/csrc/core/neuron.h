// One step of one neuron, forward (docs/equations.md, section 2; equations 3, 4, 6 and 26 of arXiv 2205.10242).
//
// The kind of neuron is an argument. If the caller knows it at compile time, inlining leaves one case.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"
#include "scalar_math.h"
#include "dtypes.h"

namespace exodus {

// Effect of a spike on the next membrane. The numbers are those of RESET_NUMBERS in arguments.py.
enum class Reset : std::int64_t {
  none = 0,
  subtract = 1,          // u[t] = alpha u[t-1] + x[t] - rho s[t-1]
  subtract_decayed = 2,  // u[t] = alpha (u[t-1] - rho s[t-1]) + x[t]
  zero = 3,              // u[t] = alpha u[t-1] (1 - s[t-1]) + x[t]
};

template <class Real>
struct LifNeuron {
  Real alpha;
  Real threshold;
  Real reset_by;
  Real min_membrane;  // of u[t], or with bound_after_reset of what its reset leaves to the next step
  Real max_spikes;
};

// Factor of alpha: d u[t+1] / d alpha.
template <class Real>
EXODUS_HOST_DEVICE Real retained(Reset reset, Real membrane, Real spikes, Real reset_by) {
  switch (reset) {
    case Reset::subtract_decayed:
      return membrane - reset_by * spikes;
    case Reset::zero:
      return membrane * (Real(1) - spikes);
    default:
      return membrane;
  }
}

// The membrane as the next step sees it: zero for a subnormal one that leaks. Rounding would keep it from ever reaching
// zero, and processors multiply subnormal numbers a hundred times slower.
template <class Real>
EXODUS_HOST_DEVICE Real unless_faded(Real membrane, Real alpha) {
  const Real least = select(alpha < Real(1), Real(kSmallestNormal<Real>), Real(0));
  return select(magnitude(membrane) < least, Real(0), membrane);
}

// u[t] from u[t-1], s[t-1] and x[t], before the lower bound.
template <class Real>
EXODUS_HOST_DEVICE Real integrate(Reset reset, const LifNeuron<Real>& neuron, Real membrane, Real spikes, Real input) {
  const Real seen = unless_faded(membrane, neuron.alpha);
  const Real decayed = neuron.alpha * retained(reset, seen, spikes, neuron.reset_by) + input;
  return reset == Reset::subtract ? decayed - neuron.reset_by * spikes : decayed;
}

// The lower bound. What lies on the bound counts as clipped; NaN stays NaN.
template <class Real>
EXODUS_HOST_DEVICE Real clip(Real membrane, Real min_membrane) {
  return at_least(membrane, min_membrane);
}

template <class Real>
EXODUS_HOST_DEVICE auto is_clipped(Real membrane, Real min_membrane) {
  return membrane <= min_membrane;
}

// What a bound after the reset acts on: the membrane after the reset, which decays afterwards, or with Reset::subtract
// has decayed before. A faded one is zero, so that a backward pass which flushes subnormal numbers clips the same.
template <class Real>
EXODUS_HOST_DEVICE Real left_by_reset(Reset reset, const LifNeuron<Real>& neuron, Real membrane, Real spikes) {
  const Real left = retained(reset, membrane, spikes, neuron.reset_by);
  return unless_faded(reset == Reset::subtract ? neuron.alpha * left - neuron.reset_by * spikes : left, neuron.alpha);
}

// u[t] with a bound after the reset.
template <class Real>
EXODUS_HOST_DEVICE Real integrate_bounded(Reset reset, const LifNeuron<Real>& neuron, Real membrane, Real spikes,
                                          Real input) {
  const Real left = clip(left_by_reset(reset, neuron, membrane, spikes), neuron.min_membrane);
  return reset == Reset::subtract ? left + input : neuron.alpha * left + input;
}

// s[t] = 1 where u[t] >= theta (4); or floor(u[t] / theta), between 0 and max_spikes.
template <class Real>
EXODUS_HOST_DEVICE Real fire(bool many_spikes, Real membrane, Real threshold, Real max_spikes) {
  if (!many_spikes) return select(membrane >= threshold, Real(1), Real(0));
  using std::floor;  // or that of a Real of its own
  const Real count = floor(membrane / threshold);
  const Real positive = select(count > Real(0), count, Real(0));
  return select(positive < max_spikes, positive, max_spikes);
}

// One step: `membrane` and `spikes` are those of t-1 in, of t out. Returns the membrane as Storage holds it. The spike
// decision is taken on that, because the backward pass, which has nothing else, must see the same spikes.
template <class Storage, class Real>
EXODUS_HOST_DEVICE Real lif_step(Reset reset, bool many_spikes, bool bound_after_reset, const LifNeuron<Real>& neuron,
                                 Real input, Real& membrane, Real& spikes) {
  membrane = bound_after_reset ? integrate_bounded(reset, neuron, membrane, spikes, input)
                               : clip(integrate(reset, neuron, membrane, spikes, input), neuron.min_membrane);
  const Real stored = as_stored<Storage>(membrane);
  spikes = fire(many_spikes, stored, neuron.threshold, neuron.max_spikes);
  return stored;
}

// The same for an SRM neuron: u[n] = z[n] + (nu * s)[n-1] (6).
template <class Storage, class Real>
EXODUS_HOST_DEVICE Real srm_step(Real psp, Real reset, Real threshold, Real& spikes) {
  const Real stored = as_stored<Storage>(psp + reset);
  spikes = fire(false, stored, threshold, Real(1));
  return stored;
}

}  // namespace exodus
