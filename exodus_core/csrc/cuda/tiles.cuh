// Mapping of lanes to threads, and the ways of rows of time to them.
//
// One thread has one lane, or `width` neighbouring ones, and walks through time. If the inner dimension is long,
// neighbouring threads read neighbouring elements straight from global memory (in place). If it is short (time last:
// inner = 1), a block copies a stretch of time of its lanes to shared memory, so that global memory is still read and
// written in runs (staged).
#pragma once

#include <algorithm>
#include <cstdint>

#include "../core/layout.h"
#include "memory.cuh"

namespace exodus::cuda {

constexpr int kThreads = 128;

// For __launch_bounds__ of the largest kernels, blocks that a multiprocessor must hold at once; 0 leaves it to the
// compiler. What it chooses is more than the registers of double precision allow, and ends in spills.
template <class Storage>
constexpr int kMinBlocks = sizeof(Storage) == 8 ? 1 : 0;

// Lanes of a thread if alignment allows: up to four, in loads of up to 16 bytes.
template <class Storage>
__host__ __device__ constexpr int vector_width() {
  return sizeof(Storage) == 8 ? 2 : 4;
}

// Below this, a row of the inner dimension is too short to be read by neighbouring threads at once.
constexpr std::int64_t kMinInPlaceLanes = 32;

// Staged: lanes of a block, and bytes of a run of time in shared memory (a 128-byte line of global memory if inner is 1).
constexpr int kStagedLanes = 64;
constexpr int kStagedBytes = 128;
constexpr int kStagedPitch = kStagedLanes + 1;  // a column of padding against bank conflicts

template <class Storage>
__host__ __device__ constexpr int staged_steps() {
  return kStagedBytes / static_cast<int>(sizeof(Storage));
}

inline unsigned int blocks_for(std::int64_t threads, int per_block) {
  return static_cast<unsigned int>((threads + per_block - 1) / per_block);
}

// The tensors that a kernel walks through. Null reads as zeros.
template <class Storage, int inputs, int outputs>
struct Sweep {
  Layout layout;
  bool reverse;  // from the last step to the first
  const Storage* in[inputs];
  Storage* out[outputs];
};

// True if every row of these tensors (null: not given) can be read in vectors of `width` elements.
template <int width, class Storage, int inputs, int outputs>
bool fits_vectors(const Sweep<Storage, inputs, outputs>& sweep) {
  const auto aligned = [](const void* tensor) {
    return reinterpret_cast<std::uintptr_t>(tensor) % (sizeof(Storage) * width) == 0;
  };
  return sweep.layout.inner % width == 0 && std::all_of(sweep.in, sweep.in + inputs, aligned) &&
         std::all_of(sweep.out, sweep.out + outputs, aligned);
}

// Steps whose loads are in flight together.
constexpr int kStepsInFlight = 4;

// Walks `width` neighbouring lanes of one thread through time. step(i, x, y) computes lane i: y, of `outputs` elements,
// from x, of `inputs`.
template <int width, class Storage, int inputs, int outputs, class Step>
__device__ __forceinline__ void sweep_in_place(const Sweep<Storage, inputs, outputs>& sweep, std::int64_t lane, Step step) {
  using Row = Vector<Storage, width>;
  const Layout& layout = sweep.layout;
  const std::int64_t first = layout.offset(lane, 0);
  const auto offset_of = [&](std::int64_t n) {
    return first + (sweep.reverse ? layout.time - 1 - n : n) * layout.inner;
  };
  for (std::int64_t begin = 0; begin < layout.time; begin += kStepsInFlight) {
    Row x[kStepsInFlight][inputs];
#pragma unroll
    for (int k = 0; k < kStepsInFlight; ++k) {
#pragma unroll
      for (int j = 0; j < inputs; ++j) {
        const bool given = begin + k < layout.time && sweep.in[j] != nullptr;
        x[k][j] = given ? load_vector<width>(sweep.in[j] + offset_of(begin + k)) : Row{};
      }
    }
#pragma unroll
    for (int k = 0; k < kStepsInFlight; ++k) {
      if (begin + k >= layout.time) break;
      Row y[outputs];
#pragma unroll
      for (int i = 0; i < width; ++i) {
        Storage from[inputs];
        Storage to[outputs];
#pragma unroll
        for (int j = 0; j < inputs; ++j) from[j] = x[k][j].at[i];
        step(i, from, to);
#pragma unroll
        for (int j = 0; j < outputs; ++j) y[j].at[i] = to[j];
      }
#pragma unroll
      for (int j = 0; j < outputs; ++j) store_vector<width>(sweep.out[j] + offset_of(begin + k), y[j]);
    }
  }
}

// The lanes of a staged block: whole outer indices, as many as fit.
struct StagedBlock {
  std::int64_t first_outer;
  int outers;
  int inner;

  __device__ __forceinline__ static StagedBlock of(const Layout& layout) {
    const int inner = static_cast<int>(layout.inner);
    const std::int64_t most = kStagedLanes / inner;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * most;
    const std::int64_t left = layout.outer - first;
    return {first, static_cast<int>(left < most ? left : most), inner};
  }
  __device__ __forceinline__ bool has_thread() const { return static_cast<int>(threadIdx.x) < outers * inner; }
  // The lane of this thread; that of the first thread if the block has none for it.
  __device__ __forceinline__ std::int64_t lane() const { return first_outer * inner + (has_thread() ? threadIdx.x : 0); }

  // Calls move(index in the tile, offset in the tensor) for every element of the steps [begin, begin + steps), shared
  // among the threads: for one outer index they are one run of global memory.
  template <class Move>
  __device__ __forceinline__ void for_each(const Layout& layout, std::int64_t begin, int steps, Move move) const {
    const int run = steps * inner;
    for (int i = static_cast<int>(threadIdx.x); i < outers * run; i += kStagedLanes) {
      const int outer = i / run;
      const int within = i % run;
      move(within / inner * kStagedPitch + outer * inner + within % inner,
           ((first_outer + outer) * layout.time + begin) * layout.inner + within);
    }
  }
};

inline unsigned int staged_blocks(const Layout& layout) {
  return blocks_for(layout.outer, static_cast<int>(kStagedLanes / layout.inner));
}

template <class Storage>
__host__ __device__ constexpr int staged_bytes(int tensors) {
  return tensors * staged_steps<Storage>() * kStagedPitch * static_cast<int>(sizeof(Storage));
}

// The same for the lanes of a block, one a thread, through `tiles`, shared memory for the larger number of tensors.
// Every thread of the block must come here.
template <class Storage, int inputs, int outputs, class Step>
__device__ __forceinline__ void sweep_staged(const Sweep<Storage, inputs, outputs>& sweep, const StagedBlock& block,
                                             Storage* tiles, Step step) {
  constexpr int kSteps = staged_steps<Storage>();
  constexpr int kTile = kSteps * kStagedPitch;
  const Layout& layout = sweep.layout;
  const std::int64_t stretches = (layout.time + kSteps - 1) / kSteps;
  for (std::int64_t n = 0; n < stretches; ++n) {
    const std::int64_t begin = (sweep.reverse ? stretches - 1 - n : n) * kSteps;
    const int steps = static_cast<int>(layout.time - begin < kSteps ? layout.time - begin : kSteps);
    __syncthreads();  // the tiles of the last stretch have been written out
#pragma unroll
    for (int j = 0; j < inputs; ++j) {
      block.for_each(layout, begin, steps, [&](int staged, std::int64_t offset) {
        tiles[j * kTile + staged] = sweep.in[j] == nullptr ? Storage{} : load_global(sweep.in[j] + offset);
      });
    }
    __syncthreads();
    for (int k = 0; block.has_thread() && k < steps; ++k) {
      Storage* column = tiles + (sweep.reverse ? steps - 1 - k : k) * kStagedPitch + threadIdx.x;
      Storage from[inputs];
      Storage to[outputs];
#pragma unroll
      for (int j = 0; j < inputs; ++j) from[j] = column[j * kTile];
      step(0, from, to);
#pragma unroll
      for (int j = 0; j < outputs; ++j) column[j * kTile] = to[j];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < outputs; ++j) {
      block.for_each(layout, begin, steps, [&](int staged, std::int64_t offset) {
        store_global(sweep.out[j] + offset, tiles[j * kTile + staged]);
      });
    }
  }
}

}  // namespace exodus::cuda
