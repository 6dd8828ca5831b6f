// The CPU backend: what operators.h asks of a device, and what its files share.
#pragma once

#include <algorithm>
#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../operators.h"
#include "output_memory.h"
#include "tiles.h"

namespace exodus::cpu {

struct Cpu {
  static constexpr const char* kDevice = "CPU";
  static bool is_on_device(const Tensor& tensor) { return tensor.is_cpu(); }
  static Tensor empty_like(const Tensor& tensor) { return output_like(tensor); }

  static void run(const LifForwardCall& call);
  static void run(const LifBackwardCall& call);
  static void run(const SrmForwardCall& call);
  static void run(const SrmBackwardCall& call);
  static void run(const FilterCall& call);
  static void run(const TapsGradientCall& call);
};

// A parameter of the lanes of a tile, spread to a row.
template <class Real>
void fill_parameter(Real* row, const Parameter& parameter, const Layout& layout, const Tile& tile) {
  const Real* values = elements<Real>(parameter.tensor);
  if (values == nullptr || parameter.tensor->numel() == 1) {
    std::fill_n(row, tile.width, values == nullptr ? static_cast<Real>(parameter.value) : *values);
    return;
  }
  for (std::int64_t lane = 0; lane < tile.width;) {  // one stretch of lanes with the same outer index at a time
    const std::int64_t n = (tile.first_lane + lane) % layout.inner;
    const std::int64_t run = std::min(layout.inner - n, tile.width - lane);
    std::copy_n(values + n, run, row + lane);
    lane += run;
  }
}

// While it lives, numbers too small for their exponent count as zero on this thread. Processors compute with them many
// times slower, and a state that fades away passes through them. Not for what has no state that fades.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  explicit FlushSubnormals(bool wanted = true) : before_(_mm_getcsr()) {
    if (wanted) _mm_setcsr(before_ | 0x8040);  // results and operands
  }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;

 private:
  unsigned int before_;
#else
  explicit FlushSubnormals(bool = true) {}
  ~FlushSubnormals() {}
#endif
};

// Runs body(first, last) over the tiles on torch's own threads; alone where there is one.
template <class Body>
void for_each_tile_range(const Tiling& tiling, Body body) {
  if (tiling.count() == 1) {
    body(std::int64_t{0}, std::int64_t{1});
  } else {
    torch::stable::parallel_for(0, tiling.count(), 1, body);
  }
}

// Threads for `count` neuron-steps: waking a thread pays from a few thousand on.
inline std::int64_t threads_for(std::int64_t count) {
  constexpr std::int64_t kWorthAThread = 16384;
  const std::int64_t available = torch::stable::get_num_threads();
  return std::clamp<std::int64_t>(count / kWorthAThread, 1, available);
}

}  // namespace exodus::cpu
