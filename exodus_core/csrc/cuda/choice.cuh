// Choice of a kernel's shape: lanes of a thread, and whether a LIF backward pass cuts time into chunks.
//
// A table for each kind of multiprocessor, by the number of lanes. The figures are computed (docs/cuda-roofline.md), not
// measured: `benchmarks/gpu_check.py --part tune` measures the alternatives on a GPU. With many lanes, threads of several
// spend fewer instructions on addresses, and half types are read in whole vectors; with few, every lane needs a thread of
// its own, and with very few every chunk of time. No choice changes a bit of what a pass computes, but for chunks, which
// round a gradient in another order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <string_view>

#include "in_place.cuh"

namespace exodus::cuda {

struct Choice {
  std::int64_t lanes;        // up to so many
  int row_bytes;             // of a thread's lanes in one step of one tensor: 4, 8 or 16, but one lane at least
  std::int64_t chunk_steps;  // a LIF backward pass of at least so many steps goes by chunks; 0: none does
};

constexpr std::int64_t kAnyLanes = std::numeric_limits<std::int64_t>::max();

// Compute capability 9 and 10: memory of 3 TB/s and more.
constexpr Choice kHopper[] = {
    {4096, 4, 320},
    {8192, 4, 768},
    {131072, 4, 0},
    {kAnyLanes, 16, 0},
};

// 8.0: 1.5 to 2 TB/s.
constexpr Choice kAmpere[] = {
    {2048, 4, 320},
    {4096, 4, 768},
    {131072, 4, 0},
    {kAnyLanes, 16, 0},
};

// 8.6, 8.9 and 12.0: 1 TB/s, which fewer lanes saturate, so that reading twice pays less.
constexpr Choice kWorkstation[] = {
    {2048, 4, 320},
    {131072, 4, 0},
    {kAnyLanes, 16, 0},
};

// Before 8.0 a thread has nothing under way but the loads of its own group: more lanes a thread are more bytes.
constexpr Choice kTuring[] = {
    {4096, 4, 320},
    {16384, 4, 512},
    {65536, 8, 0},
    {kAnyLanes, 16, 0},
};

template <std::size_t rows>
const Choice& row_for(const Choice (&table)[rows], std::int64_t lanes) {
  return *std::find_if(std::begin(table), std::end(table), [lanes](const Choice& row) { return lanes <= row.lanes; });
}

// The choice for so many lanes on a GPU of this compute capability (90 is 9.0). EXODUS_CUDA_ROW_BYTES (4, 8 or 16) and
// EXODUS_CUDA_BACKWARD (serial, chunks or auto) override it, for tests and measurements.
inline Choice choose(int capability, std::int64_t lanes) {
  const int family = capability / 10;
  Choice choice = capability < 80                ? row_for(kTuring, lanes)
                  : capability == 80             ? row_for(kAmpere, lanes)
                  : family == 9 || family == 10 ? row_for(kHopper, lanes)
                                                 : row_for(kWorkstation, lanes);
  if (const char* given = std::getenv("EXODUS_CUDA_ROW_BYTES")) {
    choice.row_bytes = std::atoi(given);
    STD_TORCH_CHECK(choice.row_bytes == 4 || choice.row_bytes == 8 || choice.row_bytes == 16,
                    "EXODUS_CUDA_ROW_BYTES must be 4, 8 or 16, got ", given);
  }
  if (const char* given = std::getenv("EXODUS_CUDA_BACKWARD")) {
    const std::string_view form = given;
    STD_TORCH_CHECK(form == "serial" || form == "chunks" || form == "auto",
                    "EXODUS_CUDA_BACKWARD must be serial, chunks or auto, got ", given);
    if (form != "auto") choice.chunk_steps = form == "serial" ? 0 : 1;
  }
  return choice;
}

}  // namespace exodus::cuda
