// The tensors that a kernel walks through, lane by lane from step to step, and how its blocks share the lanes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../core/layout.h"
#include "memory.cuh"

namespace exodus::cuda {

// For __launch_bounds__ of the largest kernels, blocks that a multiprocessor must hold at once; 0 leaves it to the
// compiler. What it chooses is more than the registers of double precision, and of sums of two lanes, allow, and ends in
// spills.
template <class Storage, bool with_sums = false>
constexpr int kMinBlocks = sizeof(Storage) == 8 || (sizeof(Storage) == 2 && with_sums) ? 1 : 0;

constexpr std::int64_t kSharedBytes = 48 * 1024;  // of a block, on every architecture without opting in

inline unsigned int blocks_for(std::int64_t threads, int per_block) {
  return static_cast<unsigned int>((threads + per_block - 1) / per_block);
}

// An input that is null reads as zeros; an output behind the first `required` that is null is not written.
template <class Storage, int inputs, int outputs, int required = outputs>
struct Sweep {
  Layout layout;
  bool reverse;  // from the last step to the first
  const Storage* in[inputs];
  Storage* out[outputs];

  // Inputs that are given.
  __host__ __device__ __forceinline__ int given() const {
    int count = 0;
    for (int j = 0; j < inputs; ++j) count += in[j] != nullptr ? 1 : 0;
    return count;
  }
};

// True if all tensors of a sweep (null: not given) are aligned to so many bytes.
template <class Storage, int inputs, int outputs, int required>
bool is_aligned(const Sweep<Storage, inputs, outputs, required>& sweep, int bytes) {
  const auto aligned = [bytes](const void* tensor) { return reinterpret_cast<std::uintptr_t>(tensor) % bytes == 0; };
  return std::all_of(sweep.in, sweep.in + inputs, aligned) && std::all_of(sweep.out, sweep.out + outputs, aligned);
}

}  // namespace exodus::cuda
