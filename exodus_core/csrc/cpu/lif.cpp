// LIF and IF on the CPU: the rows of a tile are swept in time order, forward and backward.
#include <optional>

#include "backend.h"
#include "packed_rows.h"

namespace exodus::cpu {
namespace {

// The parameters of the lanes of one tile: a number as it is, a tensor in place or copied in the order of the lanes.
template <class Storage>
class ParameterRows {
 public:
  using Real = compute_t<Storage>;

  explicit ParameterRows(const Tiling& tiling) : copies_(tiling.in_place() ? 0 : 4, tiling.width()) {}

  NeuronRows<Real> of(const LifParameters& parameters, const Layout& layout, const Tile& tile) {
    return {row(0, parameters.alpha, layout, tile), row(1, parameters.threshold, layout, tile),
            row(2, parameters.reset_by, layout, tile), row(3, parameters.min_membrane, layout, tile),
            static_cast<Real>(parameters.max_spikes), parameters.bound_after_reset};
  }

 private:
  ParameterRow<Real> row(int which, const Parameter& parameter, const Layout& layout, const Tile& tile) {
    const Real* values = elements<Real>(parameter.tensor);
    if (values == nullptr) {
      numbers_[which] = static_cast<Real>(parameter.value);
      return {&numbers_[which], false};
    }
    if (parameter.tensor->numel() == 1) return {values, false};
    if (tile.in_place) return {values + tile.first_lane % layout.inner, true};
    fill_parameter(copies_[which], parameter, layout, tile);
    return {copies_[which], true};
  }

  Real numbers_[4];
  RowBuffer<Real> copies_;
};

// A value per lane, such as the initial membrane; zeros if it is not given.
template <class Real>
void fill_state(Real* slots, const OptionalTensor& lanes, const Tile& tile, std::int64_t vector_lanes) {
  if (lanes.has_value()) {
    to_vectors(elements<Real>(*lanes) + tile.first_lane, tile, vector_lanes, slots);
  } else {
    std::fill_n(slots, tile.slots(), Real(0));
  }
}

// make_spikes_rows() makes the TileRows or PackedRows of a thread.
template <class Storage, class MakeRows>
void forward(const LifForwardCall& call, const Tiling& tiling, bool streamed, std::int64_t block_steps,
             MakeRows make_spikes_rows) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> input_rows(elements<Storage>(call.input), call.input_layout, tiling, Direction::forward);
    auto spikes_rows = make_spikes_rows();
    TileRows<Storage> membrane_rows(mutable_elements<Storage>(call.membrane), layout, tiling, Direction::forward, streamed);
    ParameterRows<Storage> parameter_rows(tiling);
    RowBuffer<Real> state(2, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      input_rows.enter(tile);
      spikes_rows.enter(tile);
      membrane_rows.enter(tile);
      fill_state(state[0], call.initial.membrane, tile, kernels.vector_lanes);
      fill_state(state[1], call.initial.spikes, tile, kernels.vector_lanes);
      LifForwardBlock<Storage> block{};
      block.width = tile.padded();
      block.neuron = parameter_rows.of(call.parameters, layout, tile);
      block.membrane_state = state[0];
      block.spikes_state = state[1];
      const auto compute = [&](std::int64_t begin, std::int64_t end) {
        input_rows.read(begin, end);
        spikes_rows.prepare(begin);
        membrane_rows.prepare(begin);
        block.steps = end - begin;
        block.input = input_rows.block(begin);
        block.spikes = spikes_rows.block(begin);
        block.membrane = membrane_rows.block(begin);
        kernels.lif_forward(call.reset, call.parameters.max_spikes > 1, block);
        spikes_rows.put(begin, end);
        membrane_rows.put(begin, end);
      };
      for_each_block(layout.time, Direction::forward, compute, block_steps);
    }
  });
}

template <class Storage>
void forward(const LifForwardCall& call) {
  const Layout& layout = call.layout;
  const Tiling tiling(layout, threads_for(call.input.numel()), kMaxTileLanes);
  const std::int64_t bytes = call.input.numel() * sizeof(Storage);
  if (call.packed) {
    forward<Storage>(call, tiling, streams(layout, 2 * bytes), PackedRows<Storage>::block_steps(tiling), [&] {
      return PackedRows<Storage>(mutable_elements<std::uint8_t>(call.spikes), layout, tiling);
    });
  } else {
    const bool streamed = streams(layout, 3 * bytes);
    forward<Storage>(call, tiling, streamed, kBlockSteps, [&] {
      return TileRows<Storage>(mutable_elements<Storage>(call.spikes), layout, tiling, Direction::forward, streamed);
    });
  }
}

template <class Storage>
void backward(const LifBackwardCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const bool with_lanes = call.lane_gradients.numel() > 0;
  const LifParameters& parameters = call.parameters;
  // A bound after the reset clips what a flushed membrane and reset_by would change; without a decay, nothing fades.
  const bool after_reset = parameters.bound_after_reset;
  const bool flushes = !after_reset || decays<Real>(parameters.alpha);
  const bool operands = is_normal<Real>(parameters.threshold) && is_normal<Real>(parameters.min_membrane) &&
                        (!after_reset || is_normal<Real>(parameters.reset_by));
  const bool streamed = !call.summed && streams(layout, 3 * call.membrane.numel() * sizeof(Storage));
  // The sums are four rows of state more.
  const Tiling tiling(layout, threads_for(call.membrane.numel()), with_lanes ? kMaxTileLanes / 4 : kMaxTileLanes);
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> membrane_rows(elements<Storage>(call.membrane), layout, tiling, Direction::backward);
    TileRows<const Storage> grad_spikes_rows(elements<Storage>(call.grad_spikes), layout, tiling, Direction::backward);
    TileRows<const Storage> grad_membrane_rows(elements<Storage>(call.grad_membrane), layout, tiling, Direction::backward);
    Storage* grad_input = call.summed ? nullptr : mutable_elements<Storage>(call.grad_input);
    TileRows<Storage> grad_input_rows(grad_input, layout, tiling, Direction::backward, streamed);
    ParameterRows<Storage> parameter_rows(tiling);
    RowBuffer<Real> adjoint(1, tiling.width());
    RowBuffer<Real> initial(with_lanes ? 4 : 0, tiling.width());
    BlockSums<Real> sums(with_lanes ? 4 : 0, tiling.width());
    BlockSums<Real> total(call.summed ? 1 : 0, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      membrane_rows.enter(tile);
      grad_spikes_rows.enter(tile);
      grad_membrane_rows.enter(tile);
      grad_input_rows.enter(tile);
      adjoint.clear();
      sums.clear();
      total.clear();
      LifBackwardBlock<Storage> block{};
      block.width = tile.padded();
      block.neuron = parameter_rows.of(call.parameters, layout, tile);
      block.surrogate = call.surrogate.as<Real>();
      block.adjoint = adjoint[0];
      if (call.summed) block.total = total.block(0);
      if (with_lanes) block.sums = {sums.block(0), sums.block(1), sums.block(2), sums.block(3)};
      for_each_block(layout.time, Direction::backward, [&](std::int64_t begin, std::int64_t end) {
        std::optional<FlushSubnormals> flush;
        if (flushes) flush.emplace(operands);
        membrane_rows.read(begin, end);
        grad_spikes_rows.read(begin, end);
        grad_membrane_rows.read(begin, end);
        grad_input_rows.prepare(begin);
        block.steps = end - begin;
        block.membrane = membrane_rows.block(begin);
        block.grad_spikes = grad_spikes_rows.block(begin);
        block.grad_membrane = grad_membrane_rows.block(begin);
        block.grad_input = grad_input_rows.block(begin);
        kernels.lif_backward(call.method, call.reset, block);
        grad_input_rows.put(begin, end);
        if (with_lanes) sums.add_block();
        total.add_block();
      });
      if (call.summed) {
        from_vectors(total.rounded(0), tile, kernels.vector_lanes, mutable_elements<Real>(call.grad_input) + tile.first_lane);
      }
      if (!with_lanes) continue;
      fill_state(initial[0], call.initial.membrane, tile, kernels.vector_lanes);
      fill_state(initial[1], call.initial.spikes, tile, kernels.vector_lanes);
      kernels.lif_initial(call.method, call.reset,
                                      {tile.padded(), block.neuron, initial[0], initial[1], adjoint[0], initial[2],
                                       initial[3], block.sums});
      sums.add_block();
      const Real* rows[kLaneGradients];
      rows[kInitialMembrane] = initial[2];
      rows[kInitialSpikes] = initial[3];
      rows[kAlpha] = sums.rounded(0);
      rows[kThreshold] = sums.rounded(1);
      rows[kResetBy] = sums.rounded(2);
      rows[kMinMembrane] = sums.rounded(3);
      for (std::int64_t k = 0; k < kLaneGradients; ++k) {
        from_vectors(rows[k], tile, kernels.vector_lanes,
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

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) {
  register_operators<Cpu>(m);
  m.impl("lif_forward_packed", TORCH_BOX(&Operators<Cpu>::lif_forward_packed));
  m.impl("lif_backward_summed", TORCH_BOX(&Operators<Cpu>::lif_backward<true>));
}

}  // namespace exodus::cpu
