// Causal filters on the CPU (docs/equations.md, section 3; equations 5, 11 and 13 of arXiv 2205.10242).
#include "kernel_state.h"

namespace exodus::cpu {
namespace {

template <class Storage>
void filter_rows(const Tensor& input, const CausalKernel& kernel, Direction direction, const Layout& layout, Tensor& output) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Tiling tiling(layout, threads_for(input.numel()), kernel.max_width(sizeof(Real)));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> input_rows(elements<Storage>(input), layout, tiling);
    TileRows<Storage> output_rows(mutable_elements<Storage>(output), layout, tiling);
    KernelState<Storage> state(kernel, tiling.width());
    RowBuffer<Real> loaded(1, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      input_rows.enter(tile);
      output_rows.enter(tile);
      state.reset(tile.width);
      for_each_block(layout.time, direction, [&](std::int64_t begin, std::int64_t end) {
        input_rows.read(begin, end);
        output_rows.prepare(begin);
        for (std::int64_t step = begin; step < end; ++step) {
          const std::int64_t t = direction == Direction::forward ? step : begin + end - 1 - step;
          kernels.load(tile.width, input_rows[t], loaded[0]);
          state.push(loaded[0]);
          kernels.store(tile.width, state.response(), output_rows[t]);
        }
        output_rows.put(begin, end);
      });
    }
  });
}

// y[n] = sum over k of kernel[k] x[n - k]; reverse: the transpose, y[m] = sum over k of kernel[k] x[m + k].
Tensor filter(const Tensor& input, std::optional<Tensor> taps, std::vector<double> decay, std::vector<double> constant,
              std::vector<double> linear, bool reverse, std::int64_t time_dim) {
  const Layout layout = layout_of(input, time_dim);
  const CausalKernel kernel = kernel_of(taps, decay, constant, linear, input, layout);
  Tensor output = torch::stable::empty_like(input);
  if (input.numel() > 0) {
    dispatch(input, [&](auto element) {
      filter_rows<decltype(element)>(input, kernel, reverse ? Direction::backward : Direction::forward, layout, output);
    });
  }
  return output;
}

// dL/dkernel[k] = sum over n and lanes of grad[n] source[n - k - delay]. For one outer index both factors are contiguous.
template <class Storage>
void taps_gradient_sums(const Tensor& grad, const Tensor& source, std::int64_t delay, const Layout& layout, Tensor& gradient) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  torch::stable::parallel_for(0, gradient.numel(), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k) {
      double sum = 0;
      const std::int64_t steps = layout.time - k - delay;
      for (std::int64_t b = 0; b < layout.outer && steps > 0; ++b) {
        const std::int64_t start = b * layout.time * layout.inner;
        sum += kernels.dot(steps * layout.inner, elements<Storage>(grad) + start + (k + delay) * layout.inner,
                           elements<Storage>(source) + start);
      }
      mutable_elements<Real>(gradient)[k] = static_cast<Real>(sum);
    }
  });
}

Tensor taps_gradient(const Tensor& grad, const Tensor& source, std::int64_t length, std::int64_t delay, std::int64_t time_dim) {
  const Layout layout = layout_of(grad, time_dim);
  STD_TORCH_CHECK(length > 0 && delay >= 0, "length must be positive and delay not negative");
  elements_like<void>(source, grad);
  Tensor gradient = torch::stable::new_zeros(grad, {length}, compute_dtype(grad));
  if (grad.numel() > 0) {
    dispatch(grad, [&](auto element) { taps_gradient_sums<decltype(element)>(grad, source, delay, layout, gradient); });
  }
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) {
  m.impl("filter", TORCH_BOX(&filter));
  m.impl("taps_gradient", TORCH_BOX(&taps_gradient));
}

}  // namespace exodus::cpu
