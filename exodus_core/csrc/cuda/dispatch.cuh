// Choice of the kernel for a LIF backward pass.
//
// One thread a lane is exact in the order of the equations and reads everything once, but needs lanes: about 100 bytes are
// in flight for each, and some 2 MB must be to keep a memory of 3 TB/s and 600 ns busy, so about 20,000 lanes. With fewer,
// cutting time into chunks brings more threads, at the price of reading twice: worth it from half of that on down, and
// only if time is long enough to be cut. An estimate, to be replaced by a measured table.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

#include "../core/layout.h"

namespace exodus::cuda {

constexpr std::int64_t kMaxLanesForChunks = 8192;
constexpr std::int64_t kMinStepsForChunks = 512;

// EXODUS_CUDA_BACKWARD=serial or chunks overrides the table, for tests and measurements.
inline bool by_chunks(const Layout& layout) {
  const char* asked = std::getenv("EXODUS_CUDA_BACKWARD");
  const std::string choice = asked == nullptr ? "" : asked;
  if (choice == "serial") return false;
  if (choice == "chunks") return true;
  return layout.lanes() <= kMaxLanesForChunks && layout.time >= kMinStepsForChunks;
}

}  // namespace exodus::cuda
