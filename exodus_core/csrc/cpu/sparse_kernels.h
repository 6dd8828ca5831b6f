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

template <bool with_values, int vectors, class Real, class Scalar = typename Real::Lane>
void add_listed_windows(const WindowSums<Scalar>& call) {
  constexpr std::int64_t lanes = sizeof(Real) / sizeof(Scalar), width = vectors * lanes;
  const std::int64_t taps = call.taps_y * call.taps_x;
  for (std::int64_t r = 0; r < call.channels * call.height; ++r) {
    const std::int64_t channel = r / call.height, row = r % call.height;
    for (std::uint32_t i = call.rows[r]; i < call.rows[r + 1]; ++i) {
      const Real value(with_values ? call.values[i] : Scalar(1));
      const std::int64_t column = call.elements[i] - row * call.pitch;
      for (std::uint32_t y = call.y.first[row]; y < call.y.first[row + 1]; ++y) {
        for (std::uint32_t x = call.x.first[column]; x < call.x.first[column + 1]; ++x) {
          const std::int64_t tap = channel * taps + call.y.windows[y].tap + call.x.windows[x].tap;
          const std::int64_t output = call.margin + call.y.windows[y].output + call.x.windows[x].output;
          const Scalar* terms = call.terms + (call.to_taps ? output : tap) * width;
          Scalar* sums = call.sums + (call.to_taps ? tap : output) * width;
          for (int v = 0; v < vectors; ++v) {
            const Real term = Real::read(terms + v * lanes);
            const Real sum = Real::read(sums + v * lanes);
            (sum + (with_values ? value * term : term)).write(sums + v * lanes);
          }
        }
      }
    }
  }
}

constexpr std::int64_t kBandBytes = 20 << 10;  // of rows of outputs: a part of a first-level cache

// For one row of a kernel after the other, whose taps' terms or sums stay in registers, and the elements that it meets
// for a band of rows of outputs. Rows of a kernel meet those of the image in ascending order, and so each output meets
// its elements and each tap too.
template <int taps, bool to_taps, bool with_values, int vectors, class Real, class Scalar = typename Real::Lane>
void add_windows_of_taps(const WindowSums<Scalar>& call) {
  constexpr std::int64_t lanes = sizeof(Real) / sizeof(Scalar), width = vectors * lanes;
  constexpr int most = (EXODUS_VECTOR_BYTES == 64 ? 24 : 12) / taps;  // vectors of a tap that fit in registers
  constexpr int block = most >= vectors ? vectors : most >= 4 ? 4 : most >= 2 ? 2 : 1;
  std::conditional_t<to_taps, Scalar, const Scalar>* kernels;
  std::conditional_t<to_taps, const Scalar, Scalar>* outputs;
  if constexpr (to_taps) {
    kernels = call.sums, outputs = call.terms;
  } else {
    kernels = call.terms, outputs = call.sums;
  }
  const std::int64_t band = std::max<std::int64_t>(1, kBandBytes / (call.pitch * call.bytes));
  for (std::int64_t begin = 0; begin < call.outputs_y; begin += band) {
    const std::int64_t end = std::min(call.outputs_y, begin + band);
    auto* kernel = kernels;
    for (std::int64_t channel = 0; channel < call.channels; ++channel) {
      const std::uint32_t* const rows = call.rows + channel * call.height;
      for (std::int64_t j = 0; j < call.taps_y; ++j, kernel += taps * width) {
        const std::int64_t below = call.padding_y - j * call.dilation_y;  // the outputs are so many rows below
        const std::int64_t first_row = std::clamp<std::int64_t>(begin - below, 0, call.height);
        const std::int64_t last_row = std::clamp<std::int64_t>(end - below, 0, call.height);
        const std::uint32_t first = rows[first_row], last = rows[last_row];
        if (first == last) continue;
        auto* const origin = outputs + (call.margin + below * call.pitch + call.padding_x) * width;
        const std::int64_t step = call.dilation_x * width;
        for (std::int64_t from = 0; from < width; from += block * lanes) {
          Real held[taps][block];
#pragma GCC unroll 8
          for (int k = 0; k < taps; ++k) {
#pragma GCC unroll 8
            for (int v = 0; v < block; ++v) held[k][v] = Real::read(kernel + k * width + from + v * lanes);
          }
          for (std::uint32_t i = first; i < last; ++i) {
            auto* const place = origin + std::int64_t{call.elements[i]} * width + from;
            const Real value(with_values ? call.values[i] : Scalar(1));
#pragma GCC unroll 8
            for (int k = 0; k < taps; ++k) {
#pragma GCC unroll 8
              for (int v = 0; v < block; ++v) {
                auto* const output = place - k * step + v * lanes;
                if constexpr (to_taps) {
                  const Real term = Real::read(output);
                  held[k][v] += with_values ? value * term : term;
                } else {
                  const Real term = held[k][v];
                  (Real::read(output) + (with_values ? value * term : term)).write(output);
                }
              }
            }
          }
          if constexpr (to_taps) {
#pragma GCC unroll 8
            for (int k = 0; k < taps; ++k) {
#pragma GCC unroll 8
              for (int v = 0; v < block; ++v) held[k][v].write(kernel + k * width + from + v * lanes);
            }
          }
        }
      }
    }
  }
}

template <bool with_values, int vectors, class Real, class Scalar = typename Real::Lane>
void add_windows_of_panel(const WindowSums<Scalar>& call) {
  const auto with_taps = [&](auto taps) {
    return call.to_taps ? add_windows_of_taps<taps.value, true, with_values, vectors, Real>(call)
                        : add_windows_of_taps<taps.value, false, with_values, vectors, Real>(call);
  };
  switch (call.listed ? 0 : call.taps_x) {
    case 1:
      return with_taps(std::integral_constant<int, 1>{});
    case 2:
      return with_taps(std::integral_constant<int, 2>{});
    case 3:
      return with_taps(std::integral_constant<int, 3>{});
    case 4:
      return with_taps(std::integral_constant<int, 4>{});
    case 5:
      return with_taps(std::integral_constant<int, 5>{});
    default:
      return add_listed_windows<with_values, vectors, Real>(call);
  }
}

template <class Scalar>
void add_windows(const WindowSums<Scalar>& call) {
  if (call.bytes == kHalfPanelBytes) {  // of a wider register, a half is used
    constexpr int bytes = std::min<int>(kHalfPanelBytes, EXODUS_VECTOR_BYTES);
    using Half = Vec<Scalar, bytes / sizeof(Scalar)>;
    constexpr int vectors = kHalfPanelBytes / bytes;
    return call.values == nullptr ? add_windows_of_panel<false, vectors, Half>(call)
                                  : add_windows_of_panel<true, vectors, Half>(call);
  }
  with_vectors(call.bytes, [&](auto vectors) {
    return call.values == nullptr ? add_windows_of_panel<false, vectors.value, VecOf<Scalar>>(call)
                                  : add_windows_of_panel<true, vectors.value, VecOf<Scalar>>(call);
  });
}

template <class Scalar>
void add_from_tables(const TableSums<Scalar>& call) {
  using Real = VecOf<Scalar>;
  constexpr int vectors = kTableBytes / EXODUS_VECTOR_BYTES;
  constexpr std::int64_t lanes = kVecLanes<Scalar>, width = vectors * lanes;
  constexpr int places = EXODUS_VECTOR_BYTES == 64 ? 8 : EXODUS_VECTOR_BYTES == 32 ? 4 : 2;  // whose sums fit in registers
  for (std::int64_t y = 0; y < call.outputs_y; ++y) {
    for (std::int64_t x = 0; x < call.outputs_x; x += places) {
      const int count = static_cast<int>(std::min<std::int64_t>(places, call.outputs_x - x));
      Scalar* const to = call.sums + (y * call.outputs_x + x) * width;
      const std::uint16_t* word = call.words + y * call.segments + x / kTablePlaces;
      const auto shift = static_cast<int>(x % kTablePlaces);
      const Scalar* table = call.tables;
      Real sums[places][vectors];
#pragma GCC unroll 8
      for (int k = 0; k < places; ++k) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[k][v] = k < count ? Real::read(to + k * width + v * lanes) : Real(0);
      }
      for (std::int64_t c = 0; c < call.channels; ++c, word += call.height * call.segments) {
        for (std::int64_t j = 0; j < call.taps_y; ++j, table += kTableEntries * width) {
          const std::uint32_t bits = static_cast<std::uint32_t>(word[j * call.dilation_y * call.segments]) >> shift;
#pragma GCC unroll 8
          for (int k = 0; k < places; ++k) {
            const Scalar* const row = table + (bits >> k & (kTableEntries - 1)) * width;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[k][v] += Real::read(row + v * lanes);
          }
        }
      }
#pragma GCC unroll 8
      for (int k = 0; k < places; ++k) {
        if (k == count) break;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[k][v].write(to + k * width + v * lanes);
      }
    }
  }
}

template <int lines, class Scalar>
void add_chosen_rows(const ChosenRows<Scalar>& call) {
  using Real = VecOf<Scalar>;
  constexpr int vectors = lines * kLineBytes / EXODUS_VECTOR_BYTES;
  constexpr std::int64_t lanes = kVecLanes<Scalar>;
  for (std::int64_t r = 0; r < call.lists; ++r) {
    const std::uint32_t end = call.last[r];
    std::uint32_t k = call.first[r];
    if (k == end) continue;
    Scalar* const to = call.sums + call.to[r];
    Real sums[vectors];
#pragma GCC unroll 24
    for (int v = 0; v < vectors; ++v) sums[v] = Real::read(to + v * lanes);
    for (; k < end; ++k) {
      const Scalar* const row = call.rows + call.from[k];
      const Real value(call.values[k]);
#pragma GCC unroll 24
      for (int v = 0; v < vectors; ++v) sums[v] += value * Real::read(row + v * lanes);
    }
#pragma GCC unroll 24
    for (int v = 0; v < vectors; ++v) sums[v].write(to + v * lanes);
  }
}

template <class Scalar>
void add_chosen_rows(const ChosenRows<Scalar>& call) {
  switch (call.bytes / kLineBytes) {
    case 1:
      return add_chosen_rows<1>(call);
    case 2:
      return add_chosen_rows<2>(call);
    case 3:
      return add_chosen_rows<3>(call);
    case 4:
      return add_chosen_rows<4>(call);
    case 5:
      return add_chosen_rows<5>(call);
    default:
      return add_chosen_rows<6>(call);
  }
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
