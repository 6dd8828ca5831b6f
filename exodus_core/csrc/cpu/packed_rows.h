// The spikes of a tile as bits: a kernel writes rows of elements to a small buffer, which are packed from there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tiles.h"

namespace exodus::cpu {

// As TileRows, for a tensor (outer, time, bytes) in which a row of inner elements is whole bytes. Tiles must be in place.
template <class Storage>
class PackedRows {
 public:
  PackedRows(std::uint8_t* bits, const Layout& layout, const Tiling& tiling)
      : bits_(bits), layout_(layout), buffer_(block_steps(tiling), tiling.width()) {}

  // Steps whose rows stay in a first-level cache, but several for each time that the state of a tile is read.
  static std::int64_t block_steps(const Tiling& tiling) {
    constexpr std::int64_t kBufferBytes = 16 << 10;
    const std::int64_t row = tiling.width() * static_cast<std::int64_t>(sizeof(Storage));
    return std::clamp<std::int64_t>(kBufferBytes / row, 8, kBlockSteps);
  }

  void enter(const Tile& tile) {
    width_ = tile.width;
    const std::int64_t outer = tile.first_lane / layout_.inner, inner = tile.first_lane % layout_.inner;
    first_row_ = bits_ + outer * layout_.time * row_bytes() + inner / 8;
  }

  void prepare(std::int64_t) {}

  void put(std::int64_t begin, std::int64_t end) {
    row_kernels<Storage>().pack_rows(end - begin, width_, buffer_[0], buffer_.stride(), first_row_ + begin * row_bytes(),
                                     row_bytes());
  }

  RowBlock<Storage> block(std::int64_t) const { return {buffer_[0], buffer_.stride(), false, nullptr, 0}; }

 private:
  std::int64_t row_bytes() const { return (layout_.inner + 7) / 8; }

  std::uint8_t* bits_;
  Layout layout_;
  RowBuffer<Storage> buffer_;
  std::int64_t width_ = 0;
  std::uint8_t* first_row_ = nullptr;
};

}  // namespace exodus::cpu
