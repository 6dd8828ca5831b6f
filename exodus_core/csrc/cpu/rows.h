// Row kernels: one step in time of up to kMaxWidth lanes (neurons) that lie next to each other.
//
// They are the only loops over neurons. A table of them is compiled for each instruction set (rows_*.cpp from
// rows_impl.h) and chosen once at load time; lif.cpp, srm.cpp and filter.cpp sweep the rows through time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/adjoint.h"
#include "../core/kernel.h"
#include "../core/neuron.h"
#include "../core/storage.h"
#include "../core/surrogate.h"

namespace exodus::cpu {

// Rows of parameters and state have this many lanes at most: a dozen float rows stay in a 48 KiB L1 cache.
constexpr std::int64_t kMaxWidth = 1024;

// Parameters of the neurons in a tile, one value a lane.
template <class Real>
struct NeuronRows {
  const Real* alpha;
  const Real* threshold;
  const Real* reset_by;
  const Real* min_membrane;
  Real max_spikes;
};

template <class Storage>
struct LifForwardRow {
  using Real = compute_t<Storage>;
  std::int64_t width;
  NeuronRows<Real> neuron;
  const Storage* input;
  Storage* spikes;
  Storage* membrane;
  Real* membrane_state;  // u[t-1] in, u[t] out
  Real* spikes_state;    // s[t-1] in, s[t] out
};

// Sums over time, per lane, of the parameter gradients. Null where they are not wanted (all of them or none).
template <class Real>
struct ParameterSums {
  Real* alpha;
  Real* threshold;
  Real* reset_by;
  Real* min_membrane;
};

template <class Storage>
struct LifBackwardRow {
  using Real = compute_t<Storage>;
  std::int64_t width;
  NeuronRows<Real> neuron;
  const Storage* membrane;
  const Storage* grad_spikes;
  const Storage* grad_membrane;
  Storage* grad_input;
  const Real* spikes;     // s[t]
  const Real* surrogate;  // f'[t]
  Real* adjoint;          // lam[t+1] in, lam[t] out
  ParameterSums<Real> sums;
};

// The step from t = -1 to t = 0, whose membrane and spikes are given: it closes the backward pass.
template <class Real>
struct LifInitialRow {
  std::int64_t width;
  NeuronRows<Real> neuron;
  const Real* membrane;  // u[-1]
  const Real* spikes;    // s[-1]
  const Real* adjoint;   // lam[0]
  Real* grad_membrane;
  Real* grad_spikes;
  ParameterSums<Real> sums;
};

template <class Storage>
struct SrmForwardRow {
  using Real = compute_t<Storage>;
  std::int64_t width;
  const Real* threshold;
  const Storage* psp;
  const Real* reset;  // (nu * s)[t-1]
  Storage* spikes;
  Storage* membrane;
  Real* spikes_state;  // s[t] out
};

template <class Storage>
struct SrmBackwardRow {
  using Real = compute_t<Storage>;
  std::int64_t width;
  const Storage* grad_spikes;
  const Storage* grad_membrane;
  const Real* surrogate;
  const Real* reset;  // sum over j of nu[j] delta[t+1+j]
  Storage* grad_psp;
  Real* adjoint;        // delta[t] out
  Real* threshold_sum;
};

template <class Storage>
struct RowKernels {
  using Real = compute_t<Storage>;
  void (*lif_forward)(Reset, bool many_spikes, const LifForwardRow<Storage>&);
  void (*lif_backward)(Method, Reset, const LifBackwardRow<Storage>&);
  void (*lif_initial)(Method, Reset, const LifInitialRow<Real>&);
  void (*surrogate)(SurrogateKind, std::int64_t width, const Storage* membrane, const Real* threshold, Real slope,
                    Real scale, Real* derivative);
  void (*fire)(std::int64_t width, const Storage* membrane, const Real* threshold, Real max_spikes, Real* spikes);
  void (*srm_forward)(const SrmForwardRow<Storage>&);
  void (*srm_backward)(const SrmBackwardRow<Storage>&);
  // accumulator += coefficient * row
  void (*add_scaled)(std::int64_t width, Real coefficient, const Real* row, Real* accumulator);
  // One step of a mode: p <- decay p + input, q <- decay (q + old p), output += constant p + linear q.
  void (*mode_step)(std::int64_t width, const Mode&, const Real* input, Real* p, Real* q, Real* output);
  void (*load)(std::int64_t width, const Storage* stored, Real* row);
  void (*store)(std::int64_t width, const Real* row, Storage* stored);
  // sum of a[i] b[i]
  double (*dot)(std::int64_t count, const Storage* a, const Storage* b);
};

struct InstructionSet {
  const char* name;
  RowKernels<float> float32;
  RowKernels<double> float64;
  RowKernels<Half> float16;
  RowKernels<BFloat16> bfloat16;
};

// The widest instruction set that this processor has and that EXODUS_INSTRUCTION_SET (portable, avx2, avx512)
// allows; read once. Throws std::invalid_argument for any other value.
const InstructionSet& instruction_set();

template <class Storage>
const RowKernels<Storage>& row_kernels();

}  // namespace exodus::cpu
