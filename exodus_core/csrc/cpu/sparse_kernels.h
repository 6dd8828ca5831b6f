// The kernels of sparse products, compiled for each instruction set: elements to bits, and sums of rows of a panel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

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
      const Scalar* row = call.panel + static_cast<std::int64_t>(call.index[k]) * (vectors * lanes);
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

template <std::int64_t bytes, class Scalar>
void add_panel_rows(const PanelSums<Scalar>& call) {
  constexpr int vectors = bytes / EXODUS_VECTOR_BYTES;
  if (call.values == nullptr) {
    add_panel_rows<false, vectors>(call);
  } else {
    add_panel_rows<true, vectors>(call);
  }
}

template <class Scalar>
void add_panel_rows(const PanelSums<Scalar>& call) {
  switch (call.bytes) {
    case 64:
      return add_panel_rows<std::int64_t{64}>(call);
    case 128:
      return add_panel_rows<std::int64_t{128}>(call);
    case 256:
      return add_panel_rows<std::int64_t{256}>(call);
    default:
      return add_panel_rows<std::int64_t{512}>(call);
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
  std::memset(bits + i / 8, 0, (count + 7) / 8 - i / 8);
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

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
