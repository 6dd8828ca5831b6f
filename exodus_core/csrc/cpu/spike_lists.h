// Lists of the elements that are not zero in a block of rows: the columns of each row, or the rows of each column.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "../core/dtypes.h"
#include "kernels.h"

namespace exodus::cpu {

// Rows of bits, one an element, the first in the lowest bit of the first byte; a row begins with a byte. If the elements
// are not all 0 and 1, `values` has them, row after row.
template <class Storage>
struct SpikeRows {
  const std::uint8_t* bits;
  std::int64_t columns;
  const Storage* values;  // or null

  std::int64_t row_bytes() const { return (columns + 7) / 8; }

  // Calls found(column) for the elements of a row that are not zero, in ascending order.
  template <class Found>
  void for_each(std::int64_t row, Found found) const {
    const std::int64_t bytes = row_bytes();
    const std::uint8_t* from = bits + row * bytes;
    for (std::int64_t byte = 0; byte < bytes; byte += 8) {
      std::uint64_t word = 0;
      if (byte + 8 <= bytes) {
        std::memcpy(&word, from + byte, 8);
      } else {
        for (std::int64_t i = byte; i < bytes; ++i) word |= std::uint64_t(from[i]) << 8 * (i - byte);
      }
      for (; word != 0; word &= word - 1) found(8 * byte + __builtin_ctzll(word));
    }
  }
};

// `count` lists: entries first[i] to first[i + 1] of `index` belong to list i.
template <class Real>
struct SpikeLists {
  std::int64_t count;
  std::unique_ptr<std::uint32_t[]> first;
  std::unique_ptr<std::uint32_t[]> index;
  std::unique_ptr<Real[]> values;  // or null: all are one
};

enum class ListsOf { rows, columns };

template <class Real>
SpikeLists<Real> empty_lists(std::int64_t count, std::int64_t more = 0) {
  SpikeLists<Real> lists;
  lists.count = count;
  lists.first.reset(new std::uint32_t[count + 1 + more]());
  return lists;
}

template <class Real>
void reserve(SpikeLists<Real>& lists, std::int64_t entries, bool with_values) {
  lists.index.reset(new std::uint32_t[entries]);
  if (with_values) lists.values.reset(new Real[entries]);
}

// The lists of the rows [begin, end); rows are counted from `begin` on. Each list is in ascending order.
template <ListsOf of, class Storage, class Real = compute_t<Storage>>
SpikeLists<Real> spike_lists(const SpikeRows<Storage>& rows, std::int64_t begin, std::int64_t end) {
  const auto add = [&](SpikeLists<Real>& lists, std::uint32_t entry, std::int64_t index, std::int64_t row,
                       std::int64_t column) {
    lists.index[entry] = static_cast<std::uint32_t>(index);
    if (rows.values != nullptr) lists.values[entry] = load(rows.values[row * rows.columns + column]);
  };
  if constexpr (of == ListsOf::rows) {
    SpikeLists<Real> lists = empty_lists<Real>(end - begin);
    const std::int64_t bytes = rows.row_bytes();
    reserve(lists, instruction_set().count_ones((end - begin) * bytes, rows.bits + begin * bytes), rows.values != nullptr);
    std::uint32_t entry = 0;
    for (std::int64_t r = begin; r < end; ++r) {
      rows.for_each(r, [&](std::int64_t column) { add(lists, entry++, column, r, column); });
      lists.first[r - begin + 1] = entry;
    }
    return lists;
  } else {
    // A list's place is counted two ahead, so that filling it moves the entry one ahead to where the next list begins.
    SpikeLists<Real> lists = empty_lists<Real>(rows.columns, 1);
    for (std::int64_t r = begin; r < end; ++r) {
      rows.for_each(r, [&](std::int64_t column) { ++lists.first[column + 2]; });
    }
    for (std::int64_t i = 2; i < lists.count + 2; ++i) lists.first[i] += lists.first[i - 1];
    reserve(lists, lists.first[lists.count + 1], rows.values != nullptr);
    for (std::int64_t r = begin; r < end; ++r) {
      rows.for_each(r, [&](std::int64_t column) { add(lists, lists.first[column + 1]++, r - begin, r, column); });
    }
    return lists;
  }
}

}  // namespace exodus::cpu
