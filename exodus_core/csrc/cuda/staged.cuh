// Walks of lanes through time by way of shared memory, for rows of the inner dimension that are too short to be read by
// neighbouring threads (time last: inner is 1), so that global memory is still read and written in runs.
//
// A block is one warp. It works a stretch of time while the next one is on its way, from global memory to the second of
// two buffers; what it computes has a tile of its own, which is written out in runs again. Units of 2 bytes, of a half type
// with odd runs, have no asynchronous copies: they are copied before the stretch is computed.
#pragma once

#include "in_place.cuh"

namespace exodus::cuda {

constexpr int kStagedLanes = 32;
constexpr int kStagedBytes = 64;  // of a lane in a stretch of time
constexpr int kUnit = 16;         // bytes that a thread copies or reads at once, where alignment allows

// Steps of a stretch.
template <class Storage>
__host__ __device__ constexpr int staged_steps() {
  return kStagedBytes / static_cast<int>(sizeof(Storage));
}

// Bytes of a tile, which has a row for each outer index of a block, padded by a unit against bank conflicts.
__host__ __device__ constexpr int tile_bytes(int rows, int inner) { return rows * (inner * kStagedBytes + kUnit); }

// Outer indices of a block: as many as have a thread for each of their lanes.
inline int staged_outers(const Layout& layout) { return static_cast<int>(kStagedLanes / layout.inner); }

inline unsigned int staged_blocks(const Layout& layout) { return blocks_for(layout.outer, staged_outers(layout)); }

// Shared memory of a block for so many inputs that are given, and outputs.
inline int staged_bytes(const Layout& layout, int given, int outputs) {
  return (2 * given + outputs) * tile_bytes(staged_outers(layout), static_cast<int>(layout.inner));
}

// Bytes of the largest unit, up to kUnit, that every run of these tensors is a multiple of and aligned to.
template <class Storage, int inputs, int outputs, int required>
int staged_unit(const Sweep<Storage, inputs, outputs, required>& sweep) {
  const std::int64_t run = sweep.layout.time * sweep.layout.inner * static_cast<std::int64_t>(sizeof(Storage));
  int unit = kUnit;
  while (unit > static_cast<int>(sizeof(Storage)) && (run % unit != 0 || !is_aligned(sweep, unit))) unit /= 2;
  return unit;
}

// The lanes of a block: whole outer indices.
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
  __device__ __forceinline__ int pitch() const { return inner * kStagedBytes + kUnit; }

  // Calls move(byte in the tile, byte in the tensor) for every unit of the steps [begin, begin + steps), shared among the
  // threads: so many for a row, a power of two, that they have a unit each of a whole stretch, if there are as many.
  template <int unit, class Storage, class Move>
  __device__ __forceinline__ void for_each(const Layout& layout, std::int64_t begin, int steps, Move move) const {
    constexpr int kBytes = static_cast<int>(sizeof(Storage));
    const int of_a_row = inner == 1 ? kStagedBytes / unit : kStagedLanes;
    const int threads = of_a_row < kStagedLanes ? of_a_row : kStagedLanes;
    const int run = steps * inner * kBytes;
    const std::int64_t tensor_pitch = layout.time * inner * kBytes;
    const std::int64_t first = (first_outer * layout.time + begin) * inner * kBytes;
    const int mine = static_cast<int>(threadIdx.x);
    // What is not copied asynchronously is loaded four units at a time.
    [[maybe_unused]] constexpr int kTogether = kAsyncCopies && unit >= 4 ? 1 : 4;
#pragma unroll kTogether
    for (int row = mine / threads; row < outers; row += kStagedLanes / threads) {
#pragma unroll 1
      for (int byte = mine % threads * unit; byte < run; byte += threads * unit) {
        move(row * pitch() + byte, first + row * tensor_pitch + byte);
      }
    }
  }
};

// Calls run(unit), known when compiled.
template <class Storage, class Run>
__device__ __forceinline__ void with_unit(int unit, Run run) {
  if (unit == 16) return run(std::integral_constant<int, 16>{});
  if (unit == 8) return run(std::integral_constant<int, 8>{});
  if constexpr (sizeof(Storage) <= 4) {
    if (unit == 4) return run(std::integral_constant<int, 4>{});
  }
  if constexpr (sizeof(Storage) == 2) run(std::integral_constant<int, 2>{});
}

// Starts to copy one unit to shared memory; of 2 bytes, or on a GPU without asynchronous copies, copies it.
template <int unit>
__device__ __forceinline__ void copy_unit(unsigned char* shared, const unsigned char* global) {
  if constexpr (kAsyncCopies && unit >= 4) {
    copy_async<unit>(shared_address(shared), global);
  } else {
    using Unit = Vector<std::uint16_t, unit / 2>;
    *reinterpret_cast<Unit*>(shared) = load_global(reinterpret_cast<const Unit*>(global));
  }
}

template <int unit>
__device__ __forceinline__ void store_unit(unsigned char* global, const unsigned char* shared) {
  using Unit = Vector<std::uint16_t, unit / 2>;
  store_global(reinterpret_cast<Unit*>(global), *reinterpret_cast<const Unit*>(shared));
}

// As sweep_in_place, for the lanes of a block, one a thread, by tiles in `shared`. Every thread of the block must come
// here. `reverse` is that of the sweep, known when compiled: elements of a unit are registers, which have no index.
// `compute` is called with the steps of a unit, or with one.
template <bool reverse, class Storage, int inputs, int outputs, int required, class Compute>
__device__ __forceinline__ void sweep_staged(const Sweep<Storage, inputs, outputs, required>& sweep,
                                             const StagedBlock& block, int unit, unsigned char* shared, Compute compute) {
  constexpr int kSteps = staged_steps<Storage>();
  constexpr int kPerUnit = kUnit / static_cast<int>(sizeof(Storage));
  using Unit = Vector<Storage, kPerUnit>;
  const Layout& layout = sweep.layout;
  const int tile = tile_bytes(kStagedLanes / block.inner, block.inner);
  const int given = sweep.given();
  unsigned char* const results = shared + 2 * given * tile;
  const std::int64_t stretches = (layout.time + kSteps - 1) / kSteps;
  const auto begin_of = [&](std::int64_t n) { return (reverse ? stretches - 1 - n : n) * kSteps; };
  const auto steps_of = [&](std::int64_t n) {
    const std::int64_t left = layout.time - begin_of(n);
    return static_cast<int>(left < kSteps ? left : kSteps);
  };
  const auto fetch = [&](std::int64_t n) {
    if (n < stretches) {
      with_unit<Storage>(unit, [&](auto bytes) {
        unsigned char* to = shared + (n % 2) * given * tile;
#pragma unroll
        for (int j = 0; j < inputs; ++j) {
          if (sweep.in[j] == nullptr) continue;
          const unsigned char* from = reinterpret_cast<const unsigned char*>(sweep.in[j]);
          block.template for_each<bytes.value, Storage>(
              layout, begin_of(n), steps_of(n),
              [&](int in_tile, std::int64_t in_tensor) { copy_unit<bytes.value>(to + in_tile, from + in_tensor); });
          to += tile;
        }
      });
    }
    commit_copies();
  };
  // Where this thread's elements lie in a tile: at `mine`, and from step to step `pitch` bytes apart.
  const int outer = static_cast<int>(threadIdx.x) / block.inner;
  const int mine = outer * block.pitch() +
                   static_cast<int>(threadIdx.x) % block.inner * static_cast<int>(sizeof(Storage));
  const int pitch = block.inner * static_cast<int>(sizeof(Storage));

#pragma unroll 1
  for (std::int64_t n = -1; n < stretches; ++n) {
    wait_for_copies<0>();
    __syncthreads();  // all threads' copies are there, and the results of the stretch before have been written out
    fetch(n + 1);
    if (n < 0) continue;
    const unsigned char* const tiles = shared + (n % 2) * given * tile + mine;
    // The steps of a unit of this tensor type, which lie at `at`, in the order of the walk.
    const auto work = [&](int at, auto unit_type) {
      using Steps = decltype(unit_type);
      constexpr int kCount = static_cast<int>(sizeof(Steps) / sizeof(Storage));
      Storage from[kCount][1][inputs];
      Storage to[kCount][1][outputs];
      int place = 0;
#pragma unroll
      for (int j = 0; j < inputs; ++j) {
        const Steps x = sweep.in[j] == nullptr ? Steps{} : *reinterpret_cast<const Steps*>(tiles + place * tile + at);
        place += sweep.in[j] == nullptr ? 0 : 1;
#pragma unroll
        for (int i = 0; i < kCount; ++i) from[i][0][j] = x.at[reverse ? kCount - 1 - i : i];
      }
      compute(from, to);
#pragma unroll
      for (int j = 0; j < outputs; ++j) {
        Steps y;
#pragma unroll
        for (int i = 0; i < kCount; ++i) y.at[reverse ? kCount - 1 - i : i] = to[i][0][j];
        *reinterpret_cast<Steps*>(results + j * tile + mine + at) = y;
      }
    };
    // Time last, a lane's steps are neighbours, and are read by units; what is left over, step by step.
    const int steps = block.has_thread() ? steps_of(n) : 0;
    const int whole = block.inner == 1 ? steps / kPerUnit * kPerUnit : 0;
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      if ((part == 0) == reverse) {
#pragma unroll 1
        for (int k = whole; k < steps; ++k) work((reverse ? whole + steps - 1 - k : k) * pitch, Vector<Storage, 1>{});
      } else {
#pragma unroll 1
        for (int k = 0; k < whole; k += kPerUnit) work((reverse ? whole - kPerUnit - k : k) * pitch, Unit{});
      }
    }
    __syncthreads();  // all threads' results are there
    with_unit<Storage>(unit, [&](auto bytes) {
#pragma unroll
      for (int j = 0; j < outputs; ++j) {
        if (j >= required && sweep.out[j] == nullptr) continue;
        unsigned char* const to = reinterpret_cast<unsigned char*>(sweep.out[j]);
        const unsigned char* const from = results + j * tile;
        block.template for_each<bytes.value, Storage>(
            layout, begin_of(n), steps_of(n),
            [&](int in_tile, std::int64_t in_tensor) { store_unit<bytes.value>(to + in_tensor, from + in_tile); });
      }
    });
  }
}

}  // namespace exodus::cuda
