// Tiling of a tensor: lanes are cut into tiles, a tile is swept through time row by row.
//
// If inner is long, a row of a tile is a piece of the tensor and is used in place. If it is short (time last: inner = 1),
// blocks of time are copied to and from a small buffer in which the lanes lie next to each other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "../core/layout.h"
#include "caches.h"
#include "kernels.h"

namespace exodus::cpu {

struct Tile {
  std::int64_t first_lane;
  std::int64_t width;
  bool in_place;  // all lanes belong to one outer index and its rows are long enough

  // Elements of a row of state: whole vectors.
  std::int64_t slots() const { return (width + kMinTileLanes - 1) / kMinTileLanes * kMinTileLanes; }
  // Lanes that a kernel computes: rows of a buffer have room for whole vectors.
  std::int64_t padded() const { return in_place ? width : slots(); }
};

// Lanes that are staged together: the buffers of kBlockSteps rows stay in a second-level cache, of 1 MiB for float64.
constexpr std::int64_t kStagedLanes = 128;

class Tiling {
 public:
  // `max_width` limits the lanes of a tile; there are enough tiles for `threads` if there are lanes for them.
  Tiling(const Layout& layout, std::int64_t threads, std::int64_t max_width) : layout_(layout) {
    in_place_ = layout.inner >= kMinTileLanes;
    const std::int64_t limit = std::min(max_width, in_place_ ? kMaxTileLanes : kStagedLanes);
    const std::int64_t widest = std::max(limit / kMinTileLanes * kMinTileLanes, kMinTileLanes);
    const std::int64_t share = round_up(std::max<std::int64_t>(1, ceil_div(layout.lanes(), threads)));
    const std::int64_t span = in_place_ ? layout.inner : layout.lanes();
    per_span_ = ceil_div(span, std::min(widest, share));
    width_ = std::min(widest, round_up(ceil_div(span, std::max<std::int64_t>(1, per_span_))));
    // The remainder for the last tile may be less than a vector: the tile before takes it.
    if (per_span_ > 1 && span - (per_span_ - 1) * width_ < kMinTileLanes) --per_span_;
    count_ = (in_place_ ? layout.outer : 1) * per_span_;
  }

  std::int64_t count() const { return count_; }
  // Lanes of the widest tile, in whole vectors.
  std::int64_t width() const { return width_ + kMinTileLanes; }
  bool in_place() const { return in_place_; }

  Tile operator[](std::int64_t index) const {
    const std::int64_t span = in_place_ ? layout_.inner : layout_.lanes();
    const std::int64_t within = index % per_span_;
    const std::int64_t start = within * width_;
    const std::int64_t width = within == per_span_ - 1 ? span - start : width_;
    return {index / per_span_ * span + start, width, in_place_};
  }

 private:
  static std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
  static std::int64_t round_up(std::int64_t n) { return ceil_div(n, kMinTileLanes) * kMinTileLanes; }

  Layout layout_;
  bool in_place_;
  std::int64_t per_span_;
  std::int64_t width_;
  std::int64_t count_;
};

// `count` rows of `width` elements, zeroed, each on a cache line of its own.
template <class T>
class RowBuffer {
 public:
  RowBuffer(std::int64_t count, std::int64_t width)
      : stride_((width * static_cast<std::int64_t>(sizeof(T)) + kLineBytes - 1) / kLineBytes * kLineBytes /
                static_cast<std::int64_t>(sizeof(T))),
        bytes_(static_cast<std::size_t>(count * stride_) * sizeof(T)),
        rows_(static_cast<T*>(::operator new(std::max<std::size_t>(bytes_, kLineBytes), std::align_val_t{kLineBytes}))) {
    clear();
  }

  T* operator[](std::int64_t row) const { return rows_.get() + row * stride_; }
  std::int64_t stride() const { return stride_; }
  void clear() { std::memset(static_cast<void*>(rows_.get()), 0, bytes_); }

 private:
  struct Free {
    void operator()(T* rows) const { ::operator delete(rows, std::align_val_t{kLineBytes}); }
  };

  std::int64_t stride_;
  std::size_t bytes_;
  std::unique_ptr<T, Free> rows_;
};

// True if outputs are to be written with non-temporal stores, given the bytes of all arrays of a call. With time last that
// pays later: the LIF kernels prefetch the lines of ordinary writes while they compute. Vectors shorter than a cache line
// are never faster so.
inline bool streams(const Layout& layout, std::int64_t bytes) {
  return exceeds_caches(layout.inner == 1 ? bytes / 2 : bytes) && instruction_set().streams;
}

// The rows of one tensor that belong to the tile at hand: row t is what the row kernels read or write.
// A tensor that is not given (null) reads as zeros, and is not written. One of a single step reads as that at every t.
template <class T>
class TileRows {
 public:
  using Stored = std::remove_const_t<T>;

  // Blocks follow each other in `direction`. If `streamed`, `put` uses non-temporal stores if the last axis is time, and
  // kernels may use them on the rows of `block` if these lie in the tensor.
  TileRows(T* tensor, const Layout& layout, const Tiling& tiling, Direction direction, bool streamed = false)
      : tensor_(tensor),
        layout_(layout),
        direction_(direction),
        streamed_(streamed && !std::is_const_v<T>),
        staging_(tiling.in_place() || tensor == nullptr ? 1 : kBlockSteps, tiling.width()),
        pending_(streamed_ && !tiling.in_place() && layout.inner == 1 ? tiling.width() : 0,
                 kBlockSteps + 2 * kLineElements<Stored>) {}

  void enter(const Tile& tile) {
    tile_ = tile;
    if (tile.in_place && tensor_ != nullptr) first_row_ = tensor_ + layout_.offset(tile.first_lane, 0);
  }

  // Makes the rows [begin, end) readable; at most kBlockSteps of them.
  void read(std::int64_t begin, std::int64_t end) {
    begin_ = begin;
    if (tensor_ == nullptr || tile_.in_place) return;
    if (layout_.inner == 1 && layout_.time > 1) {
      row_kernels<Stored>().to_rows(tile_.width, end - begin, tensor_ + layout_.offset(tile_.first_lane, begin),
                                    layout_.time, staging_[0], staging_.stride());
    } else {
      for_each_run(begin, end, [](const Stored* elements, Stored* staged, std::int64_t run) {
        for (std::int64_t i = 0; i < run; ++i) staged[i] = elements[i];
      });
    }
  }

  // Announces that rows from `begin` on will be written; `put` takes the rows [begin, end) to their place.
  void prepare(std::int64_t begin) { begin_ = begin; }
  void put(std::int64_t begin, std::int64_t end) {
    if (tensor_ == nullptr || tile_.in_place) return;
    if (layout_.inner == 1 && streamed_) {
      row_kernels<Stored>().stream_rows({tile_.width, end - begin, begin, layout_.time - end, direction_, staging_[0],
                                         staging_.stride(), tensor_ + layout_.offset(tile_.first_lane, begin),
                                         layout_.time, pending_[0], pending_.stride()});
    } else if (layout_.inner == 1) {
      row_kernels<Stored>().from_rows(tile_.width, end - begin, staging_[0], staging_.stride(),
                                      tensor_ + layout_.offset(tile_.first_lane, begin), layout_.time);
    } else {
      for_each_run(begin, end, [](Stored* elements, const Stored* staged, std::int64_t run) {
        for (std::int64_t i = 0; i < run; ++i) elements[i] = staged[i];
      });
    }
  }

  T* operator[](std::int64_t t) const {
    if (tensor_ == nullptr) return staging_[0];
    return tile_.in_place ? first_row_ + t * row_stride() : staging_[t - begin_];
  }

  // The rows from `begin` on.
  RowBlock<T> block(std::int64_t begin) const {
    const std::int64_t stride = tile_.in_place ? row_stride() : staging_.stride();
    return {(*this)[begin], tensor_ == nullptr ? 0 : stride, streamed_ && tile_.in_place, ahead(begin), layout_.time};
  }

 private:
  std::int64_t row_stride() const { return layout_.time > 1 ? layout_.inner : 0; }

  // The elements that a kernel prefetches while it computes a block: those that are read next, of the next block or tile,
  // or those that this block will be written to.
  const T* ahead(std::int64_t begin) const {
    if (tensor_ == nullptr || tile_.in_place || layout_.inner != 1 || layout_.time == 1 || streamed_) return nullptr;
    if (!std::is_const_v<T>) return tensor_ + layout_.offset(tile_.first_lane, begin);
    const bool forward = direction_ == Direction::forward;
    std::int64_t lane = tile_.first_lane;
    std::int64_t next = forward ? begin + kBlockSteps : begin - kBlockSteps;
    if (next < 0 || next >= layout_.time) {
      lane = std::min(lane + tile_.width, layout_.lanes() - 1);
      next = forward ? 0 : (layout_.time - 1) / kBlockSteps * kBlockSteps;
    }
    // If a lane begins within a line, a block has a line more than is prefetched: the one that it shares with the block
    // before, which has been read.
    return tensor_ + layout_.offset(lane, next) + (forward ? kLineElements<Stored> - 1 : 0);
  }

  // Calls move(elements, staged, run) for stretches of lanes with the same outer index, step by step.
  template <class Move>
  void for_each_run(std::int64_t begin, std::int64_t end, Move move) {
    std::int64_t lane = tile_.first_lane;
    std::int64_t column = 0;
    while (column < tile_.width) {
      const std::int64_t run = std::min(layout_.inner - lane % layout_.inner, tile_.width - column);
      for (std::int64_t t = begin; t < end; ++t) {
        move(tensor_ + layout_.offset(lane, layout_.time > 1 ? t : 0), staging_[t - begin] + column, run);
      }
      lane += run;
      column += run;
    }
  }

  T* tensor_;
  Layout layout_;
  Direction direction_;
  bool streamed_;
  RowBuffer<Stored> staging_;
  RowBuffer<Stored> pending_;
  Tile tile_{};
  T* first_row_ = nullptr;
  std::int64_t begin_ = 0;
};

// State of a tile is kept vector after vector. That is lane after lane, but for a last vector that ends with the row and so
// begins before the one in front of it has ended.
template <class T>
void to_vectors(const T* lanes, const Tile& tile, std::int64_t vector_lanes, T* slots) {
  std::copy_n(lanes, tile.width, slots);
  if (tile.in_place && tile.width % vector_lanes != 0) {
    std::copy_n(lanes + tile.width - vector_lanes, vector_lanes, slots + tile.width / vector_lanes * vector_lanes);
  }
}

template <class T>
void from_vectors(const T* slots, const Tile& tile, std::int64_t vector_lanes, T* lanes) {
  std::copy_n(slots, tile.width, lanes);
  if (tile.in_place && tile.width % vector_lanes != 0) {
    std::copy_n(slots + tile.width / vector_lanes * vector_lanes, vector_lanes, lanes + tile.width - vector_lanes);
  }
}

// Sums over time, one value a lane: a block of steps is summed in Real, and added to a total in double. So the rounding
// error does not grow with the number of steps.
template <class Real>
class BlockSums {
 public:
  BlockSums(std::int64_t count, std::int64_t width)
      : count_(count), width_(width), block_(count, width), total_(count, width) {}

  Real* block(std::int64_t which) const { return block_[which]; }
  void clear() {
    block_.clear();
    total_.clear();
  }
  void add_block() {
    for (std::int64_t k = 0; k < count_; ++k) {
      for (std::int64_t i = 0; i < width_; ++i) total_[k][i] += block_[k][i];
    }
    block_.clear();
  }
  // A total, in the row of its block, which is overwritten.
  const Real* rounded(std::int64_t which) const {
    for (std::int64_t i = 0; i < width_; ++i) block_[which][i] = static_cast<Real>(total_[which][i]);
    return block_[which];
  }

 private:
  std::int64_t count_;
  std::int64_t width_;
  RowBuffer<Real> block_;
  RowBuffer<double> total_;
};

// Calls block(begin, end) for stretches of at most `most` steps, in the order of time or against it.
template <class Block>
void for_each_block(std::int64_t time, Direction direction, Block block, std::int64_t most = kBlockSteps) {
  const std::int64_t blocks = (time + most - 1) / most;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t begin = (direction == Direction::forward ? i : blocks - 1 - i) * most;
    block(begin, std::min(time, begin + most));
  }
}

}  // namespace exodus::cpu
