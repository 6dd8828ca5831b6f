// The CPU backend: what operators.h asks of a device, and what its files share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../operators.h"
#include "tiles.h"

namespace exodus::cpu {

struct Cpu {
  static constexpr const char* kDevice = "CPU";
  static bool is_on_device(const Tensor& tensor) { return tensor.is_cpu(); }

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

// A value per lane, as the initial membrane has it; zeros where it is not given.
template <class Real>
void fill_lanes(Real* row, const OptionalTensor& lanes, const Tile& tile) {
  if (lanes.has_value()) {
    std::copy_n(elements<Real>(*lanes) + tile.first_lane, tile.width, row);
  } else {
    std::fill_n(row, tile.width, Real(0));
  }
}

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
