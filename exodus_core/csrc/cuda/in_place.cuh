// Walks of lanes through time straight from global memory, for rows of the inner dimension that are long enough that
// neighbouring threads read neighbouring elements.
//
// A thread has one lane, or `width` neighbouring ones, whose elements of one tensor at one step are a row. It works a
// group of steps at a time, while the rows of later groups are on their way to shared memory: a memory of 3 TB/s and 600
// ns is busy only if 2 MB are under way at any time, more than the registers of a few thousand threads can take.
#pragma once

#include <limits>
#include <type_traits>

#include "sweep.cuh"

namespace exodus::cuda {

constexpr int kThreads = 64;  // of a block: few, so that a few thousand lanes reach every multiprocessor
constexpr int kMaxRowBytes = 16;

// Lane-steps that stand side by side in a loop through time, so that their arithmetic overlaps; and the steps of a group.
constexpr int kSideBySide = 4;
template <int width>
constexpr int kGroup = width < kSideBySide ? kSideBySide / width : 1;

// Steps of a group where a step is long: one, but where rows are loaded when they are wanted, as single ones of a half type.
template <class Storage>
constexpr int kGroupOfLongSteps = !kAsyncCopies || sizeof(Storage) < 4 ? 4 : 1;

// Below this, a row of the inner dimension is too short to be read by neighbouring threads at once.
constexpr std::int64_t kMinInPlaceLanes = 32;

// Groups of steps that the ring in shared memory has room for: all but one are under way.
constexpr int kSlots = 8;

// The rows of one thread in the order of its walk, a group of steps at a time. Where a GPU has asynchronous copies, and a
// row has the 4 bytes that they need, all slots of the ring but one are under way; else a group is loaded when it is
// wanted. A thread uses its own copies only, so that no barrier is needed. In the ring, for each input that is given, lie
// [slot][step][thread] rows, so that neighbouring threads use neighbouring banks.
template <int width, int group, int slots, int threads, class Storage, int inputs>
class Rows {
 public:
  using Row = Vector<Storage, width>;
  static constexpr bool kAhead = kAsyncCopies && sizeof(Row) >= 4;
  static constexpr int kStepBytes = threads * static_cast<int>(sizeof(Row));
  static constexpr int kSlotBytes = group * kStepBytes;
  static constexpr int kRingBytes = kAhead ? slots * kSlotBytes : 0;  // of one input, for a block
  static_assert(inputs * kRingBytes <= kSharedBytes, "the ring must fit the shared memory of a block");

  // Rows of `steps` steps from the element at `first` of each input on, `stride` elements apart. The first input must be
  // given.
  __device__ __forceinline__ Rows(const Storage* const (&in)[inputs], std::int64_t first, std::int64_t stride, int steps,
                                  unsigned char* shared, int thread)
      : stride_(stride), left_(steps) {
    int rings = 0;
#pragma unroll
    for (int j = 0; j < inputs; ++j) {
      given_[j] = j == 0 || in[j] != nullptr;
      next_[j] = given_[j] ? in[j] + first : nullptr;
      if constexpr (kAhead) {
        const int column = rings * kRingBytes + thread * static_cast<int>(sizeof(Row));
        ring_[j] = given_[j] ? shared_address(shared + column) : SharedAddress{};
        rings += given_[j] ? 1 : 0;
      }
    }
    if constexpr (kAhead) {
#pragma unroll 1
      for (int slot = 1; slot < slots; ++slot) fetch();
    }
  }

  // The rows of the next group, of which `steps` are wanted: [step][input], zeros for an input that is not given.
  __device__ __forceinline__ void take(Row (&x)[group][inputs], int steps = group) {
    if constexpr (kAhead) wait_for_copies<slots - 2>();
#pragma unroll
    for (int j = 0; j < inputs; ++j) {
#pragma unroll
      for (int k = 0; k < group; ++k) {
        x[k][j] = Row{};
        if constexpr (kAhead) {
          if (given_[j]) x[k][j] = load_shared<Row>(ring_[j] + taken_ + k * kStepBytes);
        } else {
          if (given_[j] && k < steps) x[k][j] = load_global(reinterpret_cast<const Row*>(next_[j] + k * stride_));
        }
      }
    }
    if constexpr (kAhead) {
      taken_ = after(taken_);
      fetch();  // into the slot whose rows were used before these
    } else {
      advance();
    }
  }

 private:
  __device__ __forceinline__ static int after(int slot) { return slot + kSlotBytes == kRingBytes ? 0 : slot + kSlotBytes; }

  // Starts the copies of the next group, of what is left of it.
  __device__ __forceinline__ void fetch() {
    if constexpr (kAhead) {
      if (left_ >= group) {
        copy(group);
        advance();
      } else if (left_ > 0) {
        copy(left_);
      }
      left_ -= group;
      commit_copies();
      fetched_ = after(fetched_);
    }
  }
  __device__ __forceinline__ void copy(int steps) {
#pragma unroll
    for (int j = 0; j < inputs; ++j) {
#pragma unroll
      for (int k = 0; k < group; ++k) {
        if (given_[j] && k < steps) {
          copy_async<sizeof(Row)>(ring_[j] + fetched_ + k * kStepBytes, next_[j] + k * stride_);
        }
      }
    }
  }
  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int j = 0; j < inputs; ++j) {
      if (given_[j]) next_[j] += group * stride_;
    }
  }

  const Storage* next_[inputs];
  bool given_[inputs];
  SharedAddress ring_[inputs];
  std::int64_t stride_;
  int left_;  // steps that are not fetched yet
  int taken_ = 0;    // byte of the slot to be taken
  int fetched_ = 0;  // and of the one to be fetched to
};

// Walks the `width` lanes from `lane` on through time. compute(x, y) computes some steps of them: y, [step][lane][output],
// from x, [step][lane][input]. It is called with `group` steps, and at the end of time with one.
template <int width, int group, class Storage, int inputs, int outputs, int required, class Compute>
__device__ __forceinline__ void sweep_in_place(const Sweep<Storage, inputs, outputs, required>& sweep, std::int64_t lane,
                                               unsigned char* shared, Compute compute) {
  using Row = Vector<Storage, width>;
  const Layout& layout = sweep.layout;
  const std::int64_t first = layout.offset(lane, sweep.reverse ? layout.time - 1 : 0);
  const std::int64_t stride = sweep.reverse ? -layout.inner : layout.inner;
  const int time = static_cast<int>(layout.time);
  Rows<width, group, kSlots, kThreads, Storage, inputs> rows(sweep.in, first, stride, time, shared,
                                                             static_cast<int>(threadIdx.x));
  Storage* to[outputs];
#pragma unroll
  for (int j = 0; j < outputs; ++j) to[j] = j >= required && sweep.out[j] == nullptr ? nullptr : sweep.out[j] + first;
  const auto work = [&](const auto& x, auto steps) {
    Storage from[steps.value][width][inputs];
    Storage results[steps.value][width][outputs];
#pragma unroll
    for (int k = 0; k < steps.value; ++k) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
#pragma unroll
        for (int j = 0; j < inputs; ++j) from[k][i][j] = x[k][j].at[i];
      }
    }
    compute(from, results);
#pragma unroll
    for (int k = 0; k < steps.value; ++k) {
#pragma unroll
      for (int j = 0; j < outputs; ++j) {
        if (j >= required && sweep.out[j] == nullptr) continue;
        Row y;
#pragma unroll
        for (int i = 0; i < width; ++i) y.at[i] = results[k][i][j];
        store_global(reinterpret_cast<Row*>(to[j]), y);
        to[j] += stride;
      }
    }
  };
  Row x[group][inputs];
  int left = time;
#pragma unroll 1
  for (; left >= group; left -= group) {
    rows.take(x);
    work(x, std::integral_constant<int, group>{});
  }
  if constexpr (group > 1) {
    if (left == 0) return;
    rows.take(x, left);
#pragma unroll 1
    for (; left > 0; --left) {
      work(x, std::integral_constant<int, 1>{});
#pragma unroll
      for (int k = 0; k + 1 < group; ++k) {
#pragma unroll
        for (int j = 0; j < inputs; ++j) x[k][j] = x[k + 1][j];
      }
    }
  }
}

// A `compute` of one lane that calls step(x, y), with elements of one step, for each step in turn.
template <class Step>
__device__ __forceinline__ auto step_by_step(Step step) {
  return [step](const auto& x, auto& y) mutable {
#pragma unroll
    for (int k = 0; k < static_cast<int>(sizeof(x) / sizeof(x[0])); ++k) step(x[k][0], y[k][0]);
  };
}

// Shared memory of a block that walks in place; refuses a time that it cannot count.
template <int width, int group, class Storage, int inputs, int outputs, int required>
int ring_bytes(const Sweep<Storage, inputs, outputs, required>& sweep, const OnDeviceOf& device) {
  STD_TORCH_CHECK(sweep.layout.time <= std::numeric_limits<int>::max(), "time must have at most ",
                  std::numeric_limits<int>::max(), " steps on this device, got ", sweep.layout.time);
  return device.copies_ahead() ? sweep.given() * Rows<width, group, kSlots, kThreads, Storage, inputs>::kRingBytes : 0;
}

// The largest number of lanes whose rows have at most so many bytes, and are whole and aligned in all tensors.
template <class Storage, int inputs, int outputs>
int width_for(const Sweep<Storage, inputs, outputs>& sweep, int row_bytes) {
  constexpr int kBytes = static_cast<int>(sizeof(Storage));
  int width = kMaxRowBytes / kBytes;
  while (width > 1 && (width * kBytes > row_bytes || sweep.layout.inner % width != 0 || !is_aligned(sweep, width * kBytes))) {
    width /= 2;
  }
  return width;
}

// Calls run(width), known when compiled: the one wanted, or the widest that there is.
template <int widest, class Run>
void with_width(int wanted, Run run) {
  if constexpr (widest > 1) {
    if (wanted < widest) return with_width<widest / 2>(wanted, run);
  }
  run(std::integral_constant<int, widest>{});
}

}  // namespace exodus::cuda
