// The kernels of sparse products, compiled for each instruction set: elements to bits, and sums of rows of a panel, as
// lists or the windows of a convolution choose them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

template <bool with_values, int vectors, class Scalar>
void add_panel_rows(const PanelSums<Scalar>& call) {
  using Real = VecOf<Scalar>;
  constexpr std::int64_t lanes = kVecLanes<Scalar>;
  for (std::int64_t r = 0; r < call.rows; ++r) {
    Real sums[vectors];
    for (int v = 0; v < vectors; ++v) sums[v] = Real(0);
    for (std::uint32_t k = call.first[r]; k < call.first[r + 1]; ++k) {
      const Scalar* row = call.panel + static_cast<std::int64_t>(call.index[k]) * call.panel_stride;
      if constexpr (with_values) {
        const Real value(call.values[k]);
        for (int v = 0; v < vectors; ++v) sums[v] += value * Real::read(row + v * lanes);
      } else {
        for (int v = 0; v < vectors; ++v) sums[v] += Real::read(row + v * lanes);
      }
    }
    Scalar* to = call.sums + r * call.sums_stride;
    if (call.base == nullptr) {
      for (int v = 0; v < vectors; ++v) sums[v].write(to + v * lanes);
    } else {
      const Scalar* base = call.base + r * call.base_stride;
      for (int v = 0; v < vectors; ++v) (Real::read(base + v * lanes) + sums[v]).write(to + v * lanes);
    }
  }
}

// Calls one(column) for the ones of a row of bits, in ascending order. The bits behind the last column are 0.
template <class One>
void for_each_one(const std::uint8_t* bits, std::int64_t columns, One one) {
  const std::int64_t bytes = (columns + 7) / 8;
  for (std::int64_t byte = 0; byte < bytes; byte += 8) {
    std::uint64_t word = 0;
    if (byte + 8 <= bytes) {
      std::memcpy(&word, bits + byte, 8);
    } else {
      std::memcpy(&word, bits + byte, static_cast<std::size_t>(bytes - byte));  // of a little-endian processor
    }
    for (; word != 0; word &= word - 1) one(8 * byte + __builtin_ctzll(word));
  }
}

template <bool with_values, int vectors, class Storage>
void sum_of_columns(const BitSums<Storage>& call) {
  using Real = VecOf<Storage>;
  constexpr std::int64_t lanes = kVecLanes<Storage>, row_lanes = vectors * lanes;
  for (std::int64_t r = 0; r < call.rows; ++r) {
    Real sums[vectors];
    for (Real& sum : sums) sum = Real(0);
    for_each_one(call.bits + r * call.bits_stride, call.columns, [&](std::int64_t column) {
      const auto* terms = call.terms + column * row_lanes;
      if constexpr (with_values) {
        const Real value(load(call.values[r * call.values_stride + column]));
        for (int v = 0; v < vectors; ++v) sums[v] += value * Real::read(terms + v * lanes);
      } else {
        for (int v = 0; v < vectors; ++v) sums[v] += Real::read(terms + v * lanes);
      }
    });
    auto* to = call.sums + r * call.sums_stride;
    for (int v = 0; v < vectors; ++v) {
      (call.base == nullptr ? sums[v] : Real::read(call.base + v * lanes) + sums[v]).write(to + v * lanes);
    }
  }
}

template <bool with_values, int vectors, class Storage>
void add_to_columns(const BitSums<Storage>& call) {
  using Real = VecOf<Storage>;
  constexpr std::int64_t lanes = kVecLanes<Storage>, row_lanes = vectors * lanes;
  for (std::int64_t r = 0; r < call.rows; ++r) {
    Real terms[vectors];
    for (int v = 0; v < vectors; ++v) terms[v] = Real::read(call.terms + r * row_lanes + v * lanes);
    for_each_one(call.bits + r * call.bits_stride, call.columns, [&](std::int64_t column) {
      auto* to = call.sums + column * call.sums_stride;
      if constexpr (with_values) {
        const Real value(load(call.values[r * call.values_stride + column]));
        for (int v = 0; v < vectors; ++v) (Real::read(to + v * lanes) + value * terms[v]).write(to + v * lanes);
      } else {
        for (int v = 0; v < vectors; ++v) (Real::read(to + v * lanes) + terms[v]).write(to + v * lanes);
      }
    });
  }
}

template <bool with_values, int vectors, class Scalar>
void add_windows(const WindowSums<Scalar>& call) {
  using Real = VecOf<Scalar>;
  constexpr std::int64_t lanes = kVecLanes<Scalar>;
  for (std::int64_t i = 0; i < call.count; ++i) {
    const Place<Scalar> place = call.places[i];
    for (std::uint32_t y = call.y.first[place.y]; y < call.y.first[place.y + 1]; ++y) {
      const WindowsOfPlaces::Window row = call.y.windows[y];
      for (std::uint32_t x = call.x.first[place.x]; x < call.x.first[place.x + 1]; ++x) {
        const WindowsOfPlaces::Window window = call.x.windows[x];
        const std::int64_t tap = std::int64_t{place.taps} + row.tap + window.tap;
        const std::int64_t output = std::int64_t{row.output} + window.output;
        const Scalar* terms = call.terms + (call.to_taps ? output : tap) * (vectors * lanes);
        Scalar* sums = call.sums + (call.to_taps ? tap : output) * (vectors * lanes);
        for (int v = 0; v < vectors; ++v) {
          const Real term = Real::read(terms + v * lanes);
          const Real sum = Real::read(sums + v * lanes);
          (sum + (with_values ? Real(place.value) * term : term)).write(sums + v * lanes);
        }
      }
    }
  }
}

// Calls body(vectors), a constant, for rows of `bytes`, one of kPanelBytes.
template <class Body>
void with_vectors(std::int64_t bytes, Body body) {
  switch (bytes) {
    case 64:
      return body(std::integral_constant<int, 64 / EXODUS_VECTOR_BYTES>{});
    case 128:
      return body(std::integral_constant<int, 128 / EXODUS_VECTOR_BYTES>{});
    case 256:
      return body(std::integral_constant<int, 256 / EXODUS_VECTOR_BYTES>{});
    default:
      return body(std::integral_constant<int, 512 / EXODUS_VECTOR_BYTES>{});
  }
}

template <class Scalar>
void add_panel_rows(const PanelSums<Scalar>& call) {
  with_vectors(call.bytes, [&](auto vectors) {
    if (call.values == nullptr) {
      add_panel_rows<false, vectors.value>(call);
    } else {
      add_panel_rows<true, vectors.value>(call);
    }
  });
}

template <class Storage>
void sum_of_columns(const BitSums<Storage>& call) {
  with_vectors(call.bytes, [&](auto vectors) {
    if (call.values == nullptr) {
      sum_of_columns<false, vectors.value>(call);
    } else {
      sum_of_columns<true, vectors.value>(call);
    }
  });
}

template <class Storage>
void add_to_columns(const BitSums<Storage>& call) {
  with_vectors(call.bytes, [&](auto vectors) {
    if (call.values == nullptr) {
      add_to_columns<false, vectors.value>(call);
    } else {
      add_to_columns<true, vectors.value>(call);
    }
  });
}

template <class Scalar>
void add_windows(const WindowSums<Scalar>& call) {
  with_vectors(call.bytes, [&](auto vectors) {
    if (call.only_ones) {
      add_windows<false, vectors.value>(call);
    } else {
      add_windows<true, vectors.value>(call);
    }
  });
}

template <class Storage>
NonZeros pack(std::int64_t count, const Storage* elements, std::uint8_t* bits) {
  using Real = VecOf<Storage>;
  constexpr std::int64_t lanes = kVecLanes<Storage>;
  constexpr std::int64_t group = lanes < 8 ? 8 : lanes;  // elements that fill whole bytes
  NonZeros found{0, true};
  std::uint32_t others = 0;
  std::int64_t i = 0;
  for (; i + group <= count; i += group) {
    std::uint32_t ones = 0;
    for (std::int64_t j = 0; j < group; j += lanes) {
      const Real values = load_lanes<Real>(elements + i + j);
      ones |= to_bits(values != Real(0)) << j;
      others |= to_bits(select(values != Real(0), values, Real(1)) != Real(1));
    }
    found.count += __builtin_popcount(ones);
    std::memcpy(bits + i / 8, &ones, group / 8);
  }
  for (std::int64_t byte = i / 8; byte < (count + 7) / 8; ++byte) bits[byte] = 0;
  for (; i < count; ++i) {
    const compute_t<Storage> value = load(elements[i]);
    if (value == 0) continue;
    ++found.count;
    others |= value != 1;
    bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | 1u << i % 8);
  }
  found.only_ones = others == 0;
  return found;
}

template <class Storage>
void pack_rows(std::int64_t rows, std::int64_t count, const Storage* elements, std::int64_t stride, std::uint8_t* bits,
               std::int64_t bits_stride) {
  using Real = VecOf<Storage>;
  constexpr std::int64_t lanes = kVecLanes<Storage>;
  constexpr std::int64_t group = lanes < 8 ? 8 : lanes;
  const std::int64_t whole = count / group * group;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Storage* from = elements + r * stride;
    std::uint8_t* to = bits + r * bits_stride;
    for (std::int64_t i = 0; i < whole; i += group) {
      std::uint32_t ones = 0;
      for (std::int64_t j = 0; j < group; j += lanes) {
        ones |= to_bits(load_lanes<Real>(from + i + j) != Real(0)) << j;
      }
      std::memcpy(to + i / 8, &ones, group / 8);
    }
    if (whole < count) pack(count - whole, from + whole, to + whole / 8);
  }
}

// Ones and zeros of the bits.
template <class Storage>
void unpack(std::int64_t count, const std::uint8_t* bits, Storage* elements) {
  const Storage values[2] = {store<Storage>(0), store<Storage>(1)};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int j = 0; j < 8; ++j) elements[i + j] = values[bits[i / 8] >> j & 1];
  }
  for (; i < count; ++i) elements[i] = values[bits[i / 8] >> i % 8 & 1];
}

inline std::int64_t count_ones(std::int64_t bytes, const std::uint8_t* bits) {
  std::int64_t count = 0;
  std::int64_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bits + i, 8);
    count += __builtin_popcountll(word);
  }
  for (; i < bytes; ++i) count += __builtin_popcount(bits[i]);
  return count;
}

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
