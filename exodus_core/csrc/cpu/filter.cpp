// Causal filters on the CPU (docs/equations.md, section 3; equations 5, 11 and 13 of arXiv 2205.10242).
#include "kernel_state.h"

namespace exodus::cpu {
namespace {

template <class Storage>
void filter_rows(const FilterCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const Direction direction = call.reverse ? Direction::backward : Direction::forward;
  const bool streamed = streams(layout, 2 * call.input.numel() * sizeof(Storage));
  const Tiling tiling(layout, threads_for(call.input.numel()), max_width(call.kernel, sizeof(Real)));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> input_rows(elements<Storage>(call.input), layout, tiling, direction);
    TileRows<Storage> output_rows(mutable_elements<Storage>(call.output), layout, tiling, direction, streamed);
    KernelState<Storage> state(call.kernel, tiling.width());
    RowBuffer<Real> loaded(1, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      input_rows.enter(tile);
      output_rows.enter(tile);
      state.reset(tile.width);
      const bool whole_vectors = !tile.in_place || tile.width % kMinTileLanes == 0;
      for_each_block(layout.time, direction, [&](std::int64_t begin, std::int64_t end) {
        input_rows.read(begin, end);
        output_rows.prepare(begin);
        for (std::int64_t step = begin; step < end; ++step) {
          const std::int64_t t = direction == Direction::forward ? step : begin + end - 1 - step;
          if constexpr (std::is_same_v<Storage, Real>) {
            if (whole_vectors) {
              state.push(input_rows[t], output_rows[t]);
              continue;
            }
          }
          kernels.load(tile.width, input_rows[t], loaded[0]);
          state.push(loaded[0]);
          kernels.store(tile.width, state.response(), output_rows[t]);
        }
        output_rows.put(begin, end);
      });
    }
  });
}

// For one outer index both factors are one run of memory.
template <class Storage>
void taps_gradient_sums(const TapsGradientCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  torch::stable::parallel_for(0, call.gradient.numel(), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k) {
      const std::int64_t shift = k + call.delay;
      const std::int64_t run = (layout.time - shift) * layout.inner;
      double sum = 0;
      for (std::int64_t b = 0; b < layout.outer && run > 0; ++b) {
        const std::int64_t start = b * layout.time * layout.inner;
        sum += kernels.dot(run, elements<Storage>(call.grad) + start + shift * layout.inner,
                           elements<Storage>(call.source) + start);
      }
      mutable_elements<Real>(call.gradient)[k] = static_cast<Real>(sum);
    }
  });
}

}  // namespace

void Cpu::run(const FilterCall& call) {
  dispatch(call.input, [&](auto element) { filter_rows<decltype(element)>(call); });
}

void Cpu::run(const TapsGradientCall& call) {
  dispatch(call.grad, [&](auto element) { taps_gradient_sums<decltype(element)>(call); });
}

}  // namespace exodus::cpu
