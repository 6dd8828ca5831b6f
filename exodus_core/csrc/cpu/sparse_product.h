// Pieces that products and convolutions with spikes share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend.h"
#include "spike_lists.h"

namespace exodus::cpu {

template <class Storage>
SpikeRows<Storage> spike_rows(const Tensor& bits, const OptionalTensor& values, std::int64_t columns) {
  return {elements<std::uint8_t>(bits), columns, elements<Storage>(values)};
}

// Panels that cover the outputs of a product.
template <class Real>
struct Panels {
  std::int64_t outputs;
  std::int64_t bytes;

  explicit Panels(std::int64_t outputs_, bool halves = false) : outputs(outputs_), bytes(kHalfPanelBytes) {
    const std::int64_t row = outputs * static_cast<std::int64_t>(sizeof(Real));
    if (halves && row <= kHalfPanelBytes) return;
    for (const std::int64_t size : kPanelBytes) {
      bytes = size;
      if (row <= size) break;
    }
  }
  std::int64_t lanes() const { return bytes / static_cast<std::int64_t>(sizeof(Real)); }
  std::int64_t count() const { return (outputs + lanes() - 1) / lanes(); }
  std::int64_t begin(std::int64_t panel) const { return panel * lanes(); }
  std::int64_t width(std::int64_t panel) const { return std::min(lanes(), outputs - begin(panel)); }
};

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline void check_spikes(const Tensor& bits, const OptionalTensor& values, std::int64_t columns, const Tensor& like) {
  STD_TORCH_CHECK(bits.is_cpu() && bits.is_contiguous() && bits.scalar_type() == ScalarType::Byte && bits.dim() == 2 &&
                      bits.size(1) == (columns + 7) / 8,
                  "bits must be a contiguous uint8 tensor (rows, ", (columns + 7) / 8, ") on CPU");
  // They would count as elements that no row of a panel belongs to.
  const std::uint8_t* const from = elements<std::uint8_t>(bits);
  for (std::int64_t last = bits.size(1) - 1; columns % 8 != 0 && last < bits.numel(); last += bits.size(1)) {
    STD_TORCH_CHECK(from[last] >> columns % 8 == 0, "bits must be 0 behind the last of ", columns, " elements");
  }
  if (!values.has_value()) return;
  STD_TORCH_CHECK(values->is_cpu() && values->is_contiguous() && values->scalar_type() == like.scalar_type() &&
                      values->numel() == bits.size(0) * columns,
                  "values must be a contiguous tensor of the weight's dtype, with ", columns, " elements a row");
}

}  // namespace exodus::cpu
