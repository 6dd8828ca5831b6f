// LIF and IF on the CPU: the rows of a tile are swept in time order, forward and backward.
#include "backend.h"

namespace exodus::cpu {
namespace {

// The parameters of the lanes of one tile, spread to rows.
template <class Storage>
class ParameterRows {
 public:
  using Real = compute_t<Storage>;

  explicit ParameterRows(std::int64_t width) : rows_(4, width) {}

  NeuronRows<Real> fill(const LifParameters& parameters, const Layout& layout, const Tile& tile) {
    fill_parameter(rows_[0], parameters.alpha, layout, tile);
    fill_parameter(rows_[1], parameters.threshold, layout, tile);
    fill_parameter(rows_[2], parameters.reset_by, layout, tile);
    fill_parameter(rows_[3], parameters.min_membrane, layout, tile);
    // Rounded as the membrane will be: a stored membrane that was raised to the bound must be seen to lie on it.
    for (std::int64_t i = 0; i < tile.width; ++i) rows_[3][i] = as_stored<Storage>(rows_[3][i]);
    return {rows_[0], rows_[1], rows_[2], rows_[3], static_cast<Real>(parameters.max_spikes)};
  }

 private:
  RowBuffer<Real> rows_;
};

template <class Storage>
void forward(const LifForwardCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const Tiling tiling(layout, threads_for(call.input.numel()));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> input_rows(elements<Storage>(call.input), layout, tiling);
    TileRows<Storage> spikes_rows(mutable_elements<Storage>(call.spikes), layout, tiling);
    TileRows<Storage> membrane_rows(mutable_elements<Storage>(call.membrane), layout, tiling);
    ParameterRows<Storage> parameter_rows(tiling.width());
    RowBuffer<Real> state(2, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      input_rows.enter(tile);
      spikes_rows.enter(tile);
      membrane_rows.enter(tile);
      fill_lanes(state[0], call.initial.membrane, tile);
      fill_lanes(state[1], call.initial.spikes, tile);
      LifForwardRow<Storage> row{};
      row.width = tile.width;
      row.neuron = parameter_rows.fill(call.parameters, layout, tile);
      row.membrane_state = state[0];
      row.spikes_state = state[1];
      for_each_block(layout.time, Direction::forward, [&](std::int64_t begin, std::int64_t end) {
        input_rows.read(begin, end);
        spikes_rows.prepare(begin);
        membrane_rows.prepare(begin);
        for (std::int64_t t = begin; t < end; ++t) {
          row.input = input_rows[t];
          row.spikes = spikes_rows[t];
          row.membrane = membrane_rows[t];
          kernels.lif_forward(call.reset, call.parameters.max_spikes > 1, row);
        }
        spikes_rows.put(begin, end);
        membrane_rows.put(begin, end);
      });
    }
  });
}

template <class Storage>
void backward(const LifBackwardCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const bool with_lanes = call.lane_gradients.numel() > 0;
  const bool needs_spikes = with_lanes || call.reset == Reset::zero;
  const Tiling tiling(layout, threads_for(call.membrane.numel()));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> membrane_rows(elements<Storage>(call.membrane), layout, tiling);
    TileRows<const Storage> grad_spikes_rows(elements<Storage>(call.grad_spikes), layout, tiling);
    TileRows<const Storage> grad_membrane_rows(elements<Storage>(call.grad_membrane), layout, tiling);
    TileRows<Storage> grad_input_rows(mutable_elements<Storage>(call.grad_input), layout, tiling);
    ParameterRows<Storage> parameter_rows(tiling.width());
    RowBuffer<Real> scratch(3, tiling.width());
    RowBuffer<Real> initial(with_lanes ? 4 : 0, tiling.width());
    BlockSums<Real> sums(with_lanes ? 4 : 0, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      membrane_rows.enter(tile);
      grad_spikes_rows.enter(tile);
      grad_membrane_rows.enter(tile);
      grad_input_rows.enter(tile);
      scratch.clear();
      sums.clear();
      LifBackwardRow<Storage> row{};
      row.width = tile.width;
      row.neuron = parameter_rows.fill(call.parameters, layout, tile);
      row.surrogate = scratch[0];
      row.spikes = scratch[1];
      row.adjoint = scratch[2];
      if (with_lanes) row.sums = {sums.block(0), sums.block(1), sums.block(2), sums.block(3)};
      for_each_block(layout.time, Direction::backward, [&](std::int64_t begin, std::int64_t end) {
        membrane_rows.read(begin, end);
        grad_spikes_rows.read(begin, end);
        grad_membrane_rows.read(begin, end);
        grad_input_rows.prepare(begin);
        for (std::int64_t t = end - 1; t >= begin; --t) {
          row.membrane = membrane_rows[t];
          row.grad_spikes = grad_spikes_rows[t];
          row.grad_membrane = grad_membrane_rows[t];
          row.grad_input = grad_input_rows[t];
          kernels.surrogate(call.surrogate.kind, tile.width, row.membrane, row.neuron.threshold,
                            static_cast<Real>(call.surrogate.slope), static_cast<Real>(call.surrogate.scale), scratch[0]);
          if (needs_spikes) {
            kernels.fire(tile.width, row.membrane, row.neuron.threshold, row.neuron.max_spikes, scratch[1]);
          }
          kernels.lif_backward(call.method, call.reset, row);
        }
        grad_input_rows.put(begin, end);
        if (with_lanes) sums.add_block();
      });
      if (!with_lanes) continue;
      fill_lanes(initial[0], call.initial.membrane, tile);
      fill_lanes(initial[1], call.initial.spikes, tile);
      kernels.lif_initial(call.method, call.reset,
                          {tile.width, row.neuron, initial[0], initial[1], row.adjoint, initial[2], initial[3], row.sums});
      sums.add_block();
      const Real* totals[kLaneGradients] = {initial[2],    initial[3],    sums.total(0),
                                            sums.total(1), sums.total(2), sums.total(3)};
      for (std::int64_t k = 0; k < kLaneGradients; ++k) {
        std::copy_n(totals[k], tile.width,
                    mutable_elements<Real>(call.lane_gradients) + k * layout.lanes() + tile.first_lane);
      }
    }
  });
}

}  // namespace

void Cpu::run(const LifForwardCall& call) {
  dispatch(call.input, [&](auto element) { forward<decltype(element)>(call); });
}

void Cpu::run(const LifBackwardCall& call) {
  dispatch(call.membrane, [&](auto element) { backward<decltype(element)>(call); });
}

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) { register_operators<Cpu>(m); }

}  // namespace exodus::cpu
