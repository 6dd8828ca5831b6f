// Neurons whose membrane is coupled with a synaptic current, an adaptation or a refractory period, on the CPU: the rows of
// a tile are swept in time order, forward and backward, as those of LIF are.
#include "backend.h"

namespace exodus::cpu {
namespace {

// The parameters of the lanes of one tile: numbers as they are, a tensor in place or copied in the order of the lanes.
template <class Storage>
class CoupledParameterRows {
 public:
  using Real = compute_t<Storage>;

  explicit CoupledParameterRows(const Tiling& tiling) : copies_(tiling.in_place() ? 0 : kCoupledParameters, tiling.width()) {}

  CoupledRows<Real> of(const CoupledParameters& parameters, const Layout& layout, const Tile& tile) {
    CoupledRows<Real> rows;
    for (int k = 0; k < kCoupledParameters; ++k) rows.of[k] = row(k, parameters, layout, tile);
    return rows;
  }

 private:
  ParameterRow<Real> row(int which, const CoupledParameters& parameters, const Layout& layout, const Tile& tile) {
    if (!parameters.tensor.has_value()) {
      numbers_[which] = static_cast<Real>(parameters.numbers[which]);
      return {&numbers_[which], false};
    }
    const std::int64_t columns = parameters.tensor->numel() / kCoupledParameters;
    const Real* values = elements<Real>(parameters.tensor) + which * columns;
    if (columns == 1) return {values, false};
    if (tile.in_place) return {values + tile.first_lane % layout.inner, true};
    fill_lanes(copies_[which], values, layout, tile);
    return {copies_[which], true};
  }

  Real numbers_[kCoupledParameters];
  RowBuffer<Real> copies_;
};

// The rows of a (kCoupledStates, outer, inner) tensor, of those `from` on; zeros if it is not given.
template <class Real>
void fill_states(const RowBuffer<Real>& rows, const OptionalTensor& states, const Layout& layout, const Tile& tile,
                 std::int64_t vector_lanes) {
  for (int k = 0; k < kCoupledStates; ++k) {
    if (states.has_value()) {
      to_vectors(elements<Real>(states) + k * layout.lanes() + tile.first_lane, tile, vector_lanes, rows[k]);
    } else {
      std::fill_n(rows[k], tile.slots(), Real(0));
    }
  }
}

// The elements of an output, or null if it is not wanted.
template <class Storage>
Storage* wanted(const Tensor& tensor) {
  return tensor.numel() > 0 ? mutable_elements<Storage>(tensor) : nullptr;
}

template <class Storage>
void forward(const CoupledForwardCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const Tiling tiling(layout, threads_for(call.input.numel()), kMaxTileLanes / 4);
  const std::int64_t outputs = call.current.numel() + call.adaptation.numel() + call.held.numel();
  const bool streamed = streams(layout, (3 * call.input.numel() + outputs) * sizeof(Storage));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    const auto rows_of = [&](const Tensor& tensor) {
      return TileRows<Storage>(wanted<Storage>(tensor), layout, tiling, Direction::forward, streamed && tensor.numel() > 0);
    };
    TileRows<const Storage> input_rows(elements<Storage>(call.input), call.input_layout, tiling, Direction::forward);
    TileRows<Storage> outputs[] = {rows_of(call.spikes), rows_of(call.membrane), rows_of(call.current),
                                   rows_of(call.adaptation), rows_of(call.held)};
    CoupledParameterRows<Storage> parameter_rows(tiling);
    RowBuffer<Real> state(kCoupledStates, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      input_rows.enter(tile);
      for (TileRows<Storage>& rows : outputs) rows.enter(tile);
      fill_states(state, call.initial, layout, tile, kernels.vector_lanes);
      CoupledForwardBlock<Storage> block{};
      block.width = tile.padded();
      block.neuron = parameter_rows.of(call.parameters, layout, tile);
      block.coupling = call.coupling;
      block.max_spikes = static_cast<Real>(call.max_spikes);
      block.refractory = static_cast<Real>(call.refractory);
      block.keeps_current = call.current.numel() > 0;
      block.keeps_adaptation = call.adaptation.numel() > 0;
      block.keeps_held = call.held.numel() > 0;
      for (int k = 0; k < kCoupledStates; ++k) block.state[k] = state[k];
      for_each_block(layout.time, Direction::forward, [&](std::int64_t begin, std::int64_t end) {
        input_rows.read(begin, end);
        for (TileRows<Storage>& rows : outputs) rows.prepare(begin);
        block.steps = end - begin;
        block.input = input_rows.block(begin);
        block.spikes = outputs[0].block(begin);
        block.membrane = outputs[1].block(begin);
        block.current = outputs[2].block(begin);
        block.adaptation = outputs[3].block(begin);
        block.held = outputs[4].block(begin);
        kernels.coupled_forward(block);
        for (TileRows<Storage>& rows : outputs) rows.put(begin, end);
      });
      for (int k = 0; k < kCoupledStates; ++k) {
        from_vectors(state[k], tile, kernels.vector_lanes,
                     mutable_elements<Real>(call.last) + k * layout.lanes() + tile.first_lane);
      }
    }
  });
}

// Adaptation and refractory steps of one tile, computed from its membrane where the call does not give them: a segment of
// steps at a time, from the state before it, which a first sweep has found if there are several. With the membrane, which
// the backward pass reads again, the traces of a segment stay in a second-level cache.
template <class Storage>
class FollowedTraces {
 public:
  using Real = compute_t<Storage>;

  FollowedTraces(const CoupledBackwardCall& call, const Tiling& tiling)
      : call_(call),
        segments_(wanted_of(call) > 0 ? (call.layout.time + kSegmentSteps - 1) / kSegmentSteps : 0),
        membrane_(elements<Storage>(call.membrane), call.layout, tiling, Direction::forward),
        adaptation_(call.follows_adaptation ? steps_of(call) : 0, tiling.width()),
        held_(call.follows_held ? steps_of(call) : 0, tiling.width()),
        before_(segments_ * kCoupledStates, tiling.width()),
        state_(segments_ > 0 ? kCoupledStates : 0, tiling.width()) {}

  // The lanes of a tile whose traces and membrane fit in half of a cache of 1 MiB.
  static std::int64_t most_lanes(const CoupledBackwardCall& call) {
    const std::int64_t traces = wanted_of(call);
    if (traces == 0) return kMaxTileLanes;
    const std::int64_t bytes = (traces + 1) * steps_of(call) * static_cast<std::int64_t>(sizeof(Storage));
    return std::max<std::int64_t>((1 << 19) / bytes, 4 * kMinTileLanes);
  }

  void enter(const Tile& tile, const CoupledRows<Real>& neuron) {
    if (segments_ == 0) return;
    membrane_.enter(tile);
    block_ = {};
    block_.width = tile.padded();
    block_.neuron = neuron;
    block_.coupling = call_.coupling;
    block_.max_spikes = static_cast<Real>(call_.max_spikes);
    block_.refractory = static_cast<Real>(call_.refractory);
    for (int k = 0; k < kCoupledStates; ++k) block_.state[k] = state_[k];
    slots_ = tile.slots();
    fill_states(before_, call_.initial, call_.layout, tile, row_kernels<Storage>().vector_lanes);
    for (std::int64_t segment = 0; segment + 1 < segments_; ++segment) {
      follow(segment);
      for (int k = 0; k < kCoupledStates; ++k) std::copy_n(state_[k], slots_, before_[(segment + 1) * kCoupledStates + k]);
    }
    segment_ = segments_;
  }

  // Makes the traces of a block of steps readable.
  void read(std::int64_t begin) {
    if (segments_ == 0 || begin / kSegmentSteps == segment_) return;
    segment_ = begin / kSegmentSteps;
    block_.keeps_adaptation = call_.follows_adaptation;
    block_.keeps_held = call_.follows_held;
    follow(segment_);
  }
  RowBlock<const Storage> adaptation(std::int64_t begin) const { return readable(rows(adaptation_, begin)); }
  RowBlock<const Storage> held(std::int64_t begin) const { return readable(rows(held_, begin)); }

 private:
  static constexpr std::int64_t kSegmentSteps = 8 * kBlockSteps;

  static std::int64_t wanted_of(const CoupledBackwardCall& call) { return call.follows_adaptation + call.follows_held; }
  static std::int64_t steps_of(const CoupledBackwardCall& call) { return std::min(call.layout.time, kSegmentSteps); }
  static RowBlock<Storage> rows(const RowBuffer<Storage>& buffer, std::int64_t begin) {
    return {buffer[begin % kSegmentSteps], buffer.stride(), false, nullptr, 0};
  }
  static RowBlock<const Storage> readable(const RowBlock<Storage>& rows) {
    return {rows.first, rows.stride, false, nullptr, 0};
  }

  // Computes a segment from the state before it; leaves that behind it in `state_`.
  void follow(std::int64_t segment) {
    for (int k = 0; k < kCoupledStates; ++k) std::copy_n(before_[segment * kCoupledStates + k], slots_, state_[k]);
    const std::int64_t first = segment * kSegmentSteps;
    const std::int64_t steps = std::min(call_.layout.time - first, kSegmentSteps);
    for_each_block(steps, Direction::forward, [&](std::int64_t begin, std::int64_t end) {
      membrane_.read(first + begin, first + end);
      block_.steps = end - begin;
      block_.membrane = membrane_.block(first + begin);
      block_.adaptation = rows(adaptation_, begin);
      block_.held = rows(held_, begin);
      row_kernels<Storage>().coupled_traces(block_);
    });
  }

  const CoupledBackwardCall& call_;
  std::int64_t segments_;
  TileRows<const Storage> membrane_;
  RowBuffer<Storage> adaptation_;
  RowBuffer<Storage> held_;
  RowBuffer<Real> before_;  // the state before each segment
  RowBuffer<Real> state_;
  CoupledTracesBlock<Storage> block_{};
  std::int64_t slots_ = 0;
  std::int64_t segment_ = 0;  // whose traces can be read; none: `segments_`
};

template <class Storage>
void backward(const CoupledBackwardCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const bool with_lanes = call.lane_gradients.numel() > 0;
  const bool streamed = streams(layout, 3 * call.membrane.numel() * sizeof(Storage));
  const std::int64_t most_lanes = std::min(FollowedTraces<Storage>::most_lanes(call), kMaxTileLanes / 4);
  const Tiling tiling(layout, threads_for(call.membrane.numel()), most_lanes);
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    const auto rows_of = [&](const Storage* given) {
      return TileRows<const Storage>(given, layout, tiling, Direction::backward);
    };
    TileRows<const Storage> inputs[] = {rows_of(elements<Storage>(call.membrane)), rows_of(elements<Storage>(call.current)),
                                        rows_of(elements<Storage>(call.adaptation)), rows_of(elements<Storage>(call.held)),
                                        rows_of(elements<Storage>(call.grad_spikes)),
                                        rows_of(elements<Storage>(call.grad_membrane))};
    TileRows<Storage> grad_input_rows(mutable_elements<Storage>(call.grad_input), layout, tiling, Direction::backward, streamed);
    CoupledParameterRows<Storage> parameter_rows(tiling);
    FollowedTraces<Storage> followed(call, tiling);
    RowBuffer<Real> adjoint(6, tiling.width());
    RowBuffer<Real> given(kCoupledStates, tiling.width());
    RowBuffer<Real> gradient(with_lanes ? kCoupledStates : 0, tiling.width());
    BlockSums<Real> sums(with_lanes ? kCoupledParameters : 0, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      for (TileRows<const Storage>& rows : inputs) rows.enter(tile);
      grad_input_rows.enter(tile);
      adjoint.clear();
      sums.clear();
      CoupledBackwardBlock<Storage> block{};
      block.width = tile.padded();
      block.neuron = parameter_rows.of(call.parameters, layout, tile);
      block.coupling = call.coupling;
      block.max_spikes = static_cast<Real>(call.max_spikes);
      block.surrogate = call.surrogate.as<Real>();
      block.keeps_current = call.current.has_value();
      block.keeps_adaptation = call.adaptation.has_value() || call.follows_adaptation;
      block.keeps_held = call.held.has_value() || call.follows_held;
      block.has_grad_spikes = call.grad_spikes.has_value();
      block.has_grad_membrane = call.grad_membrane.has_value();
      block.adjoint = {adjoint[0], adjoint[1], adjoint[2], adjoint[3], adjoint[4], adjoint[5]};
      if (call.grad_last.has_value()) {
        fill_states(given, call.grad_last, layout, tile, kernels.vector_lanes);
        std::copy_n(given[kAdaptationRow], tile.slots(), block.adjoint.into_adaptation);
        std::copy_n(given[kCurrentRow], tile.slots(), block.adjoint.into_current);
      }
      if (with_lanes) {
        for (int k = 0; k < kCoupledParameters; ++k) block.sums.of[k] = sums.block(k);
      }
      followed.enter(tile, block.neuron);
      for_each_block(layout.time, Direction::backward, [&](std::int64_t begin, std::int64_t end) {
        followed.read(begin);
        const FlushSubnormals flush(false);
        for (TileRows<const Storage>& rows : inputs) rows.read(begin, end);
        grad_input_rows.prepare(begin);
        block.steps = end - begin;
        block.membrane = inputs[0].block(begin);
        block.current = inputs[1].block(begin);
        block.adaptation = call.follows_adaptation ? followed.adaptation(begin) : inputs[2].block(begin);
        block.held = call.follows_held ? followed.held(begin) : inputs[3].block(begin);
        block.grad_spikes = inputs[4].block(begin);
        block.grad_membrane = inputs[5].block(begin);
        block.grad_input = grad_input_rows.block(begin);
        kernels.coupled_backward(call.method, block);
        grad_input_rows.put(begin, end);
        if (with_lanes) sums.add_block();
      });
      if (!with_lanes) continue;
      fill_states(given, call.initial, layout, tile, kernels.vector_lanes);
      CoupledInitialRow<Real> row{tile.padded(), block.neuron, call.coupling, {}, block.adjoint, {}, block.sums};
      for (int k = 0; k < kCoupledStates; ++k) {
        row.initial[k] = given[k];
        row.gradient[k] = gradient[k];
      }
      std::fill_n(gradient[kWaitingRow], tile.slots(), Real(0));
      kernels.coupled_initial(call.method, row);
      sums.add_block();
      Real* const lanes = mutable_elements<Real>(call.lane_gradients) + tile.first_lane;
      for (int k = 0; k < kCoupledStates; ++k) {
        from_vectors(gradient[k], tile, kernels.vector_lanes, lanes + k * layout.lanes());
      }
      for (int k = 0; k < kCoupledParameters; ++k) {
        from_vectors(sums.rounded(k), tile, kernels.vector_lanes, lanes + (kCoupledStates + k) * layout.lanes());
      }
    }
  });
}

template <class Storage>
void traces(const CoupledTracesCall& call) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Layout& layout = call.layout;
  const Tiling tiling(layout, threads_for(call.membrane.numel()), kMaxTileLanes / 4);
  const std::int64_t written = call.spikes.numel() + call.adaptation.numel() + call.held.numel();
  const bool streamed = streams(layout, (call.membrane.numel() + written) * sizeof(Storage));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    const auto rows_of = [&](const Tensor& tensor) {
      return TileRows<Storage>(wanted<Storage>(tensor), layout, tiling, Direction::forward, streamed && tensor.numel() > 0);
    };
    TileRows<const Storage> membrane_rows(elements<Storage>(call.membrane), layout, tiling, Direction::forward);
    TileRows<Storage> outputs[] = {rows_of(call.spikes), rows_of(call.adaptation), rows_of(call.held)};
    CoupledParameterRows<Storage> parameter_rows(tiling);
    RowBuffer<Real> state(kCoupledStates, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      membrane_rows.enter(tile);
      for (TileRows<Storage>& rows : outputs) rows.enter(tile);
      fill_states(state, call.initial, layout, tile, kernels.vector_lanes);
      CoupledTracesBlock<Storage> block{};
      block.width = tile.padded();
      block.neuron = parameter_rows.of(call.parameters, layout, tile);
      block.coupling = call.coupling;
      block.max_spikes = static_cast<Real>(call.max_spikes);
      block.refractory = static_cast<Real>(call.refractory);
      block.keeps_spikes = call.spikes.numel() > 0;
      block.keeps_adaptation = call.adaptation.numel() > 0;
      block.keeps_held = call.held.numel() > 0;
      for (int k = 0; k < kCoupledStates; ++k) block.state[k] = state[k];
      for_each_block(layout.time, Direction::forward, [&](std::int64_t begin, std::int64_t end) {
        membrane_rows.read(begin, end);
        for (TileRows<Storage>& rows : outputs) rows.prepare(begin);
        block.steps = end - begin;
        block.membrane = membrane_rows.block(begin);
        block.spikes = outputs[0].block(begin);
        block.adaptation = outputs[1].block(begin);
        block.held = outputs[2].block(begin);
        kernels.coupled_traces(block);
        for (TileRows<Storage>& rows : outputs) rows.put(begin, end);
      });
    }
  });
}

}  // namespace

void Cpu::run(const CoupledForwardCall& call) {
  dispatch(call.input, [&](auto element) { forward<decltype(element)>(call); });
}

void Cpu::run(const CoupledBackwardCall& call) {
  dispatch(call.membrane, [&](auto element) { backward<decltype(element)>(call); });
}

void Cpu::run(const CoupledTracesCall& call) {
  dispatch(call.membrane, [&](auto element) { traces<decltype(element)>(call); });
}

}  // namespace exodus::cpu
