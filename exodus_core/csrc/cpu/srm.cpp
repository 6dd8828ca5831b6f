// SRM neurons with any causal reset kernel on the CPU (equations 6 to 8 and 22 of arXiv 2205.10242).
#include "kernel_state.h"

namespace exodus::cpu {
namespace {

template <class Storage>
void forward(const SrmForwardCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const bool streamed = streams(layout, 3 * call.psp.numel() * sizeof(Storage));
  const Tiling tiling(layout, threads_for(call.psp.numel()), max_width(call.kernel, sizeof(Real)));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> psp_rows(elements<Storage>(call.psp), layout, tiling, Direction::forward);
    TileRows<Storage> spikes_rows(mutable_elements<Storage>(call.spikes), layout, tiling, Direction::forward, streamed);
    TileRows<Storage> membrane_rows(mutable_elements<Storage>(call.membrane), layout, tiling, Direction::forward, streamed);
    KernelState<Storage> reset(call.kernel, tiling.width());
    RowBuffer<Real> scratch(2, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      psp_rows.enter(tile);
      spikes_rows.enter(tile);
      membrane_rows.enter(tile);
      fill_parameter(scratch[0], call.threshold, layout, tile);
      reset.reset(tile.width);
      for_each_block(layout.time, Direction::forward, [&](std::int64_t begin, std::int64_t end) {
        psp_rows.read(begin, end);
        spikes_rows.prepare(begin);
        membrane_rows.prepare(begin);
        for (std::int64_t t = begin; t < end; ++t) {
          kernels.srm_forward({tile.width, scratch[0], psp_rows[t], reset.response(), spikes_rows[t], membrane_rows[t],
                               scratch[1]});
          reset.push(scratch[1]);
        }
        spikes_rows.put(begin, end);
        membrane_rows.put(begin, end);
      });
    }
  });
}

template <class Storage>
void backward(const SrmBackwardCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const Surrogate<Real> surrogate = call.surrogate.as<Real>();
  const bool with_threshold = call.grad_threshold.numel() > 0;
  constexpr std::int64_t kSumSteps = 64;  // after which a short sum is added to the total, as on a GPU
  const bool operands = is_normal<Real>(call.threshold);
  const bool streamed = streams(layout, 3 * call.membrane.numel() * sizeof(Storage));
  const Tiling tiling(layout, threads_for(call.membrane.numel()), max_width(call.kernel, sizeof(Real)));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> membrane_rows(elements<Storage>(call.membrane), layout, tiling, Direction::backward);
    TileRows<const Storage> grad_spikes_rows(elements<Storage>(call.grad_spikes), layout, tiling, Direction::backward);
    TileRows<const Storage> grad_membrane_rows(elements<Storage>(call.grad_membrane), layout, tiling, Direction::backward);
    TileRows<Storage> grad_psp_rows(mutable_elements<Storage>(call.grad_psp), layout, tiling, Direction::backward, streamed);
    KernelState<Storage> reset(call.kernel, tiling.width());
    RowBuffer<Real> scratch(3, tiling.width());
    BlockSums<Real> threshold_sum(1, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      membrane_rows.enter(tile);
      grad_spikes_rows.enter(tile);
      grad_membrane_rows.enter(tile);
      grad_psp_rows.enter(tile);
      threshold_sum.clear();
      fill_parameter(scratch[0], call.threshold, layout, tile);
      reset.reset(tile.width);
      for_each_block(layout.time, Direction::backward, [&](std::int64_t begin, std::int64_t end) {
        const FlushSubnormals flush(operands);
        membrane_rows.read(begin, end);
        grad_spikes_rows.read(begin, end);
        grad_membrane_rows.read(begin, end);
        grad_psp_rows.prepare(begin);
        for (std::int64_t t = end - 1; t >= begin; --t) {
          kernels.surrogate(surrogate, tile.width, membrane_rows[t], scratch[0], scratch[1]);
          kernels.srm_backward({tile.width, grad_spikes_rows[t], grad_membrane_rows[t], scratch[1], reset.response(),
                                grad_psp_rows[t], scratch[2], threshold_sum.block(0)});
          // Nothing remembered, the response stays zero.
          if (differentiates_reset(call.method)) reset.push(scratch[2]);
          if (with_threshold && (end - t) % kSumSteps == 0) threshold_sum.add_block();
        }
        grad_psp_rows.put(begin, end);
        threshold_sum.add_block();
      });
      if (with_threshold) {
        std::copy_n(threshold_sum.rounded(0), tile.width, mutable_elements<Real>(call.grad_threshold) + tile.first_lane);
      }
    }
  });
}

}  // namespace

void Cpu::run(const SrmForwardCall& call) {
  dispatch(call.psp, [&](auto element) { forward<decltype(element)>(call); });
}

void Cpu::run(const SrmBackwardCall& call) {
  dispatch(call.membrane, [&](auto element) { backward<decltype(element)>(call); });
}

}  // namespace exodus::cpu
