// Products with spikes: x = s W^T as sums of columns of W, and dL/dW as sums of rows of dL/dx.
//
// Outputs are cut into panels of at most 512 bytes: a panel of W^T, or of dL/dx, stays in the second-level cache while the
// lists of spikes are walked, with the sums of one row in registers. An element is summed in ascending order of its
// inputs, whatever the threads and the instruction set; dL/dW in blocks of rows, whose sums are added in turn.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "backend.h"
#include "sparse_product.h"
#include "spike_lists.h"

namespace exodus::cpu {
namespace {

constexpr std::int64_t kPanelCacheBytes = 256 << 10;  // of rows of dL/dx: a part of a second-level cache

// Rows of a block: fewer than `most`, and so few that 32 bits count their elements.
std::int64_t block_rows(std::int64_t most, std::int64_t columns) {
  return std::clamp<std::int64_t>((std::int64_t{1} << 31) / std::max<std::int64_t>(columns, 1), 1, most);
}

template <ListsOf of, class Storage>
std::vector<SpikeLists<compute_t<Storage>>> all_lists(const SpikeRows<Storage>& spikes, std::int64_t rows,
                                                      std::int64_t block) {
  std::vector<SpikeLists<compute_t<Storage>>> blocks(ceil_div(rows, block));
  torch::stable::parallel_for(0, blocks.size(), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b) {
      blocks[b] = spike_lists<of>(spikes, b * block, std::min(rows, (b + 1) * block));
    }
  });
  return blocks;
}

// A panel of W^T: the columns of W for some outputs, in the dtype that is computed in.
template <class Storage>
class WeightPanel {
 public:
  using Real = compute_t<Storage>;

  WeightPanel(std::int64_t columns, std::int64_t lanes)
      : columns_(columns), rows_(columns, lanes), stored_(kInPlace ? 0 : columns, lanes) {}

  void read(const Storage* weight, std::int64_t width) {
    const RowKernels<Storage>& kernels = row_kernels<Storage>();
    if constexpr (kInPlace) {
      kernels.to_rows(width, columns_, weight, columns_, rows_[0], rows_.stride());
    } else {
      kernels.to_rows(width, columns_, weight, columns_, stored_[0], stored_.stride());
      for (std::int64_t c = 0; c < columns_; ++c) kernels.load(width, stored_[c], rows_[c]);
    }
  }

  const Real* rows() const { return rows_[0]; }
  std::int64_t stride() const { return rows_.stride(); }

 private:
  static constexpr bool kInPlace = std::is_same_v<Storage, Real>;

  std::int64_t columns_;
  RowBuffer<Real> rows_;
  RowBuffer<Storage> stored_;
};

// The rows from `begin` on, for sums over the columns from `column` on, a multiple of 8, whose panel holds all outputs. There
// a spike is added where the bits have it, without a list: each is added once.
template <class Storage>
BitSums<Storage> direct_sums(const SpikeRows<Storage>& spikes, std::int64_t begin, std::int64_t rows, std::int64_t column,
                             std::int64_t columns) {
  BitSums<Storage> call{};
  call.rows = rows;
  call.columns = columns;
  call.bits = spikes.bits + begin * spikes.row_bytes() + column / 8;
  call.bits_stride = spikes.row_bytes();
  call.values = spikes.values == nullptr ? nullptr : spikes.values + begin * spikes.columns + column;
  call.values_stride = spikes.columns;
  return call;
}

template <class Storage>
void multiply(const SpikeRows<Storage>& spikes, std::int64_t rows, const Tensor& weight, const OptionalTensor& bias,
              const Tensor& output) {
  using Real = compute_t<Storage>;
  constexpr bool in_place = std::is_same_v<Storage, Real>;
  constexpr std::int64_t kScratchRows = 64;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Panels<Real> panels(weight.size(0));
  const std::int64_t columns = spikes.columns;
  const std::int64_t share = ceil_div(rows, 2 * static_cast<std::int64_t>(torch::stable::get_num_threads()));
  const std::int64_t block = block_rows(std::clamp<std::int64_t>(share, kScratchRows, 1024), columns);
  const bool direct = panels.count() == 1;
  std::vector<SpikeLists<Real>> blocks;
  if (!direct) blocks = all_lists<ListsOf::rows>(spikes, rows, block);
  const std::int64_t count = ceil_div(rows, block);
  Storage* const written = mutable_elements<Storage>(output);
  torch::stable::parallel_for(0, panels.count() * count, 1, [&](std::int64_t first, std::int64_t last) {
    WeightPanel<Storage> panel(columns, panels.lanes());
    RowBuffer<Real> scratch(kScratchRows, panels.lanes());
    RowBuffer<Real> start(1, panels.lanes());
    std::int64_t loaded = -1;
    for (std::int64_t task = first; task < last; ++task) {
      const std::int64_t p = task / count, b = task % count, lane = panels.begin(p), width = panels.width(p);
      if (p != loaded) {
        panel.read(elements<Storage>(weight) + lane * columns, width);
        if (bias.has_value()) kernels.load(width, elements<Storage>(bias) + lane, start[0]);
        loaded = p;
      }
      const Real* base = bias.has_value() ? start[0] : nullptr;
      const bool whole = in_place && width == panels.lanes();
      const std::int64_t end = std::min(rows, (b + 1) * block);
      for (std::int64_t r = b * block; r < end; r += kScratchRows) {
        const std::int64_t present = std::min(kScratchRows, end - r);
        Storage* const to = written + r * panels.outputs + lane;
        Real* const sums = whole ? reinterpret_cast<Real*>(to) : scratch[0];
        const std::int64_t sums_stride = whole ? panels.outputs : scratch.stride();
        if (direct) {
          BitSums<Storage> call = direct_sums(spikes, r, present, 0, columns);
          call.bytes = panels.bytes;
          call.terms = panel.rows();
          call.base = base;
          call.sums = sums;
          call.sums_stride = sums_stride;
          kernels.sum_of_columns(call);
        } else {
          const SpikeLists<Real>& lists = blocks[b];
          kernels.add_panel_rows({present, panels.bytes, panel.rows(), panel.stride(), lists.first.get() + r - b * block,
                                  lists.index.get(), lists.values.get(), base, 0, sums, sums_stride});
        }
        if (whole) continue;
        for (std::int64_t i = 0; i < present; ++i) kernels.store(width, scratch[i], to + i * panels.outputs);
      }
    }
  });
}

// Rows of dL/dx whose sum is added to dL/dW at once.
constexpr std::int64_t kMostBlockRows = 512;

template <class Storage>
void multiply_transposed_directly(const SpikeRows<Storage>& spikes, std::int64_t rows, const Tensor& grad,
                                  const Tensor& gradient) {
  using Real = compute_t<Storage>;
  constexpr std::int64_t kWordColumns = 64;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const std::int64_t columns = spikes.columns, width = gradient.size(0);
  const Panels<Real> panels(width);
  torch::stable::parallel_for(0, ceil_div(columns, kWordColumns), 1, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kWordColumns, count = std::min(columns, last * kWordColumns) - begin;
    RowBuffer<Real> terms(kMostBlockRows, panels.lanes()), sums(count, panels.lanes()), totals(count, panels.lanes());
    for (std::int64_t row = 0; row < rows; row += kMostBlockRows) {
      const std::int64_t present = std::min(kMostBlockRows, rows - row);
      for (std::int64_t r = 0; r < present; ++r) {
        kernels.load(width, elements<Storage>(grad) + (row + r) * width, terms[r]);
      }
      sums.clear();
      BitSums<Storage> call = direct_sums(spikes, row, present, begin, count);
      call.bytes = panels.bytes;
      call.terms = terms[0];
      call.sums = sums[0];
      call.sums_stride = sums.stride();
      kernels.add_to_columns(call);
      for (std::int64_t i = 0; i < count * panels.lanes(); ++i) totals[0][i] += sums[0][i];
    }
    for (std::int64_t o = 0; o < width; ++o) {
      Storage* to = mutable_elements<Storage>(gradient) + o * columns + begin;
      for (std::int64_t c = 0; c < count; ++c) to[c] = store<Storage>(totals[c][o]);
    }
  });
}

// gradient[o][c] = sum over rows of grad[row][o] s[row][c]
template <class Storage>
void multiply_transposed(const SpikeRows<Storage>& spikes, std::int64_t rows, const Tensor& grad,
                         const Tensor& gradient) {
  using Real = compute_t<Storage>;
  constexpr bool in_place = std::is_same_v<Storage, Real>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Panels<Real> panels(gradient.size(0));
  if (panels.count() == 1) return multiply_transposed_directly(spikes, rows, grad, gradient);
  const std::int64_t columns = spikes.columns;
  // Rows are listed block by block, by as many threads as there are blocks.
  const std::int64_t block = block_rows(std::min(kMostBlockRows, kPanelCacheBytes / panels.bytes), columns);
  const auto blocks = all_lists<ListsOf::columns>(spikes, rows, block);
  // A panel's columns are shared between threads if there are fewer panels than those.
  const std::int64_t threads = torch::stable::get_num_threads();
  const std::int64_t shares = std::min(columns, ceil_div(threads, panels.count()));
  const std::int64_t share = ceil_div(columns, std::max<std::int64_t>(shares, 1));
  torch::stable::parallel_for(0, panels.count() * shares, 1, [&](std::int64_t first, std::int64_t last) {
    RowBuffer<Real> panel(std::min(rows, block), panels.lanes());
    RowBuffer<Real> sums(share, panels.lanes());
    RowBuffer<Storage> rounded(in_place ? 0 : share, panels.lanes());
    for (std::int64_t task = first; task < last; ++task) {
      const std::int64_t p = task / shares, lane = panels.begin(p), width = panels.width(p);
      const std::int64_t begin = task % shares * share, count = std::min(share, columns - begin);
      if (count <= 0) continue;
      sums.clear();
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        const Storage* from = elements<Storage>(grad) + static_cast<std::int64_t>(b) * block * panels.outputs + lane;
        const std::int64_t present = std::min(block, rows - static_cast<std::int64_t>(b) * block);
        for (std::int64_t r = 0; r < present; ++r) kernels.load(width, from + r * panels.outputs, panel[r]);
        const SpikeLists<Real>& lists = blocks[b];
        kernels.add_panel_rows({count, panels.bytes, panel[0], panel.stride(), lists.first.get() + begin,
                                lists.index.get(), lists.values.get(), sums[0], sums.stride(), sums[0], sums.stride()});
      }
      Storage* to = mutable_elements<Storage>(gradient) + lane * columns + begin;
      if constexpr (in_place) {
        kernels.from_rows(width, count, sums[0], sums.stride(), to, columns);
      } else {
        for (std::int64_t c = 0; c < count; ++c) kernels.store(width, sums[c], rounded[c]);
        kernels.from_rows(width, count, rounded[0], rounded.stride(), to, columns);
      }
    }
  });
}

Tensor spike_linear(const Tensor& bits, OptionalTensor values, const Tensor& weight, OptionalTensor bias) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.is_contiguous() && weight.dim() == 2,
                  "weight must be a contiguous tensor (outputs, inputs) on CPU");
  check_spikes(bits, values, weight.size(1), weight);
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->is_contiguous() && bias->scalar_type() == weight.scalar_type() &&
                        bias->numel() == weight.size(0),
                    "bias must be a contiguous tensor of the weight's dtype with ", weight.size(0), " elements");
  }
  Tensor output = output_of(weight, {bits.size(0), weight.size(0)});
  if (output.numel() == 0) return output;
  dispatch(weight, [&](auto element) {
    using Storage = decltype(element);
    multiply(spike_rows<Storage>(bits, values, weight.size(1)), bits.size(0), weight, bias, output);
  });
  return output;
}

Tensor spike_linear_weight(const Tensor& bits, OptionalTensor values, const Tensor& grad, std::int64_t columns) {
  STD_TORCH_CHECK(grad.is_cpu() && grad.is_contiguous() && grad.dim() == 2 && grad.size(0) == bits.size(0),
                  "grad must be a contiguous tensor (rows, outputs) on CPU");
  check_spikes(bits, values, columns, grad);
  Tensor gradient = output_of(grad, {grad.size(1), columns});
  if (gradient.numel() == 0) return gradient;
  dispatch(grad, [&](auto element) {
    using Storage = decltype(element);
    multiply_transposed(spike_rows<Storage>(bits, values, columns), bits.size(0), grad, gradient);
  });
  return gradient;
}

// The elements of bool tensors are bytes of 0 and 1, or of other values if they are views of bytes: those count as 1.
NonZeros pack_bools(std::int64_t count, const std::uint8_t* elements, std::uint8_t* bits) {
  NonZeros found{0, true};
  for (std::int64_t i = 0; i < count; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, elements + i, std::min<std::int64_t>(8, count - i));
    // Bit 0 of each byte becomes the disjunction of its bits.
    for (const int half : {4, 2, 1}) word |= word >> half;
    word &= 0x0101010101010101u;
    // Byte i of the word ends as bit i of the highest byte of the product.
    const auto packed = static_cast<std::uint8_t>(word * 0x0102040810204080u >> 56);
    found.count += __builtin_popcount(packed);
    bits[i / 8] = packed;
  }
  return found;
}

// Rows that are worth waking a thread for.
std::int64_t grain_rows(std::int64_t columns) {
  constexpr std::int64_t kGrainElements = 1 << 16;
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(columns, 1));
}

template <class Pack>
std::tuple<Tensor, std::int64_t> pack_rows(const Tensor& input, double max_density, Pack pack_row) {
  constexpr std::int64_t kSampledRows = 64;
  const std::int64_t columns = input.size(1), rows = input.size(0), bytes = (columns + 7) / 8;
  const auto none = [&] { return torch::stable::new_empty(input, {0, bytes}, ScalarType::Byte); };
  // What is clearly dense is not read as a whole.
  if (rows >= 4 * kSampledRows && max_density < 1) {
    std::vector<std::uint8_t> scratch(bytes);
    std::int64_t count = 0;
    const std::int64_t stride = rows / kSampledRows;
    // Each at another place of its stretch, which may be a sample whose steps all begin alike.
    for (std::int64_t i = 0; i < kSampledRows; ++i) {
      count += pack_row(i * stride + i * stride / kSampledRows, scratch.data()).count;
    }
    if (static_cast<double>(count) > 1.25 * max_density * static_cast<double>(kSampledRows * columns)) return {none(), 0};
  }
  Tensor bits = output_of(input, {rows, bytes}, ScalarType::Byte);
  std::uint8_t* to = mutable_elements<std::uint8_t>(bits);
  std::atomic<std::int64_t> count{0};
  std::atomic<bool> only_ones{true};
  torch::stable::parallel_for(0, rows, grain_rows(columns), [&](std::int64_t first, std::int64_t last) {
    std::int64_t found = 0;
    bool ones = true;
    for (std::int64_t r = first; r < last; ++r) {
      const NonZeros row = pack_row(r, to + r * bytes);
      found += row.count;
      ones &= row.only_ones;
    }
    count += found;
    if (!ones) only_ones = false;
  });
  if (static_cast<double>(count) > max_density * static_cast<double>(rows * columns)) return {none(), 0};
  return {bits, only_ones ? 1 : 2};
}

// 1 where an element is not zero. The second result is 0 if the density exceeds max_density, and then there are no bits;
// 1 if all that are not zero are one; 2 if there are others.
std::tuple<Tensor, std::int64_t> pack_spikes(const Tensor& input, double max_density) {
  STD_TORCH_CHECK(input.is_cpu() && input.is_contiguous() && input.dim() == 2,
                  "input must be a contiguous tensor (rows, columns) on CPU");
  const std::int64_t columns = input.size(1);
  if (input.scalar_type() == ScalarType::Bool) {
    const auto* from = elements<std::uint8_t>(input);
    return pack_rows(input, max_density, [&](std::int64_t row, std::uint8_t* bits) {
      return pack_bools(columns, from + row * columns, bits);
    });
  }
  std::optional<std::tuple<Tensor, std::int64_t>> found;
  dispatch(input, [&](auto element) {
    using Storage = decltype(element);
    const RowKernels<Storage>& kernels = row_kernels<Storage>();
    const Storage* from = elements<Storage>(input);
    found = pack_rows(input, max_density, [&](std::int64_t row, std::uint8_t* bits) {
      return kernels.pack(columns, from + row * columns, bits);
    });
  });
  return *found;
}

std::int64_t count_spikes(const Tensor& bits) {
  STD_TORCH_CHECK(bits.is_cpu() && bits.is_contiguous() && bits.scalar_type() == ScalarType::Byte,
                  "bits must be a contiguous uint8 tensor on CPU");
  return instruction_set().count_ones(bits.numel(), elements<std::uint8_t>(bits));
}

// The spikes of bits (rows, bytes) as a tensor (rows, columns) of the dtype of `like`.
Tensor unpack_spikes(const Tensor& bits, std::int64_t columns, const Tensor& like) {
  check_spikes(bits, std::nullopt, columns, like);
  Tensor spikes = output_of(like, {bits.size(0), columns});
  if (spikes.numel() == 0) return spikes;
  dispatch(like, [&](auto element) {
    using Storage = decltype(element);
    const RowKernels<Storage>& kernels = row_kernels<Storage>();
    const std::uint8_t* from = elements<std::uint8_t>(bits);
    Storage* to = mutable_elements<Storage>(spikes);
    torch::stable::parallel_for(0, bits.size(0), grain_rows(columns), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r) kernels.unpack(columns, from + r * bits.size(1), to + r * columns);
    });
  });
  return spikes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) {
  m.impl("spike_linear", TORCH_BOX(&spike_linear));
  m.impl("spike_linear_weight", TORCH_BOX(&spike_linear_weight));
  m.impl("count_spikes", TORCH_BOX(&count_spikes));
  m.impl("unpack_spikes", TORCH_BOX(&unpack_spikes));
  m.impl("pack_spikes", TORCH_BOX(&pack_spikes));
}

}  // namespace exodus::cpu
