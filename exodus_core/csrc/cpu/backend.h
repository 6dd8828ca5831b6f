// The CPU backend of operators.h, and helpers that its files share.
#pragma once

#include <algorithm>
#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../operators.h"
#include "output_cache.h"
#include "tiles.h"

namespace exodus::cpu {

struct Cpu {
  static constexpr const char* kDevice = "CPU";
  static bool is_on_device(const Tensor& tensor) { return tensor.is_cpu(); }
  static constexpr std::int64_t kPackedLanes = kMinTileLanes;
  static constexpr bool kFollows = true;  // adaptation and refractory steps are computed from the membrane
  static constexpr bool kReadsConstantInputs = true;
  static Tensor empty_like(const Tensor& tensor) { return output_like(tensor); }
  static Tensor output_of(const Tensor& tensor, const std::vector<std::int64_t>& sizes, ScalarType dtype) {
    return cpu::output_of(tensor, sizes, dtype);
  }

  static void run(const LifForwardCall& call);
  static void run(const LifBackwardCall& call);
  static void run(const CoupledForwardCall& call);
  static void run(const CoupledBackwardCall& call);
  static void run(const CoupledTracesCall& call);
  static void run(const SrmForwardCall& call);
  static void run(const SrmBackwardCall& call);
  static void run(const FilterCall& call);
  static void run(const TapsGradientCall& call);
};

// Values of the inner indices, copied to a row of the lanes of a tile.
template <class Real>
void fill_lanes(Real* row, const Real* values, const Layout& layout, const Tile& tile) {
  for (std::int64_t lane = 0; lane < tile.width;) {  // one stretch of lanes with the same outer index at a time
    const std::int64_t n = (tile.first_lane + lane) % layout.inner;
    const std::int64_t run = std::min(layout.inner - n, tile.width - lane);
    std::copy_n(values + n, run, row + lane);
    lane += run;
  }
}

// A parameter of the lanes of a tile, spread to a row.
template <class Real>
void fill_parameter(Real* row, const Parameter& parameter, const Layout& layout, const Tile& tile) {
  const Real* values = elements<Real>(parameter.tensor);
  if (values == nullptr || parameter.tensor->numel() == 1) {
    std::fill_n(row, tile.width, values == nullptr ? static_cast<Real>(parameter.value) : *values);
  } else {
    fill_lanes(row, values, layout, tile);
  }
}

// True if a condition holds for every value of a parameter.
template <class Real, class Condition>
bool all_of(const Parameter& parameter, Condition condition) {
  const Real* values = elements<Real>(parameter.tensor);
  const Real number = static_cast<Real>(parameter.value);
  const Real* first = values == nullptr ? &number : values;
  return std::all_of(first, first + (values == nullptr ? 1 : parameter.tensor->numel()), condition);
}

// True if no value of a parameter is zero or subnormal: then a comparison with it ends as it would if subnormal numbers
// were zero.
template <class Real>
bool is_normal(const Parameter& parameter) {
  return all_of<Real>(parameter, [](Real value) { return !(magnitude(value) < kSmallestNormal<Real>); });
}

// True if no neuron keeps its membrane as it is.
template <class Real>
bool decays(const Parameter& alpha) {
  return all_of<Real>(alpha, [](Real value) { return value < Real(1); });
}

// During its lifetime, subnormal results are flushed to zero on this thread, and with `operands` subnormal operands too.
// Processors compute with them many times slower, and a gradient that fades passes through them. For backward passes
// only: forward, the membrane decides about spikes, and kernels without a decaying state keep subnormals.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  explicit FlushSubnormals(bool operands) : before_(_mm_getcsr()) {
    constexpr unsigned int kResults = 0x8000, kOperands = 0x40;
    _mm_setcsr(before_ | kResults | (operands ? kOperands : 0));
  }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;

 private:
  unsigned int before_;
#else
  explicit FlushSubnormals(bool) {}
  ~FlushSubnormals() {}
#endif
};

// Runs body(first, last) over the tiles on torch's threads; a single tile on this thread.
template <class Body>
void for_each_tile_range(const Tiling& tiling, Body body) {
  if (tiling.count() == 1) {
    body(std::int64_t{0}, std::int64_t{1});
  } else {
    torch::stable::parallel_for(0, tiling.count(), 1, body);
  }
}

// Threads for `count` neuron-steps, each with at least kGrainSize of them: less is not worth waking a thread.
inline std::int64_t threads_for(std::int64_t count) {
  constexpr std::int64_t kGrainSize = 16384;
  const std::int64_t available = torch::stable::get_num_threads();
  return std::clamp<std::int64_t>(count / kGrainSize, 1, available);
}

}  // namespace exodus::cpu
