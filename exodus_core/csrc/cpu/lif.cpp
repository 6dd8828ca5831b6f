// LIF and IF on the CPU: the rows of a tile are swept in time order, forward and backward.
#include <tuple>

#include "tensors.h"

namespace exodus::cpu {
namespace {

struct Parameters {
  Parameter alpha;
  Parameter threshold;
  Parameter reset_by;
  Parameter min_membrane;
  double max_spikes;

  void check(const Tensor& like, const Layout& layout) const {
    for (const Parameter* parameter : {&alpha, &threshold, &reset_by, &min_membrane}) parameter->check(like, layout);
  }
};

// The parameters of the lanes of one tile, spread to rows.
template <class Storage>
class ParameterRows {
 public:
  using Real = compute_t<Storage>;

  explicit ParameterRows(std::int64_t width) : rows_(4, width) {}

  NeuronRows<Real> fill(const Parameters& parameters, const Layout& layout, const Tile& tile) {
    parameters.alpha.fill(rows_[0], layout, tile);
    parameters.threshold.fill(rows_[1], layout, tile);
    parameters.reset_by.fill(rows_[2], layout, tile);
    parameters.min_membrane.fill(rows_[3], layout, tile);
    // Rounded as the membrane will be: a stored membrane that was raised to the bound must be seen to lie on it.
    for (std::int64_t i = 0; i < tile.width; ++i) rows_[3][i] = as_stored<Storage>(rows_[3][i]);
    return {rows_[0], rows_[1], rows_[2], rows_[3], static_cast<Real>(parameters.max_spikes)};
  }

 private:
  RowBuffer<Real> rows_;
};

struct State {
  const std::optional<Tensor>& membrane;
  const std::optional<Tensor>& spikes;
};

template <class Storage>
void forward(const Tensor& input, const Parameters& parameters, const State& initial, Reset reset, const Layout& layout,
             Tensor& spikes, Tensor& membrane) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Tiling tiling(layout, threads_for(input.numel()));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> input_rows(elements<Storage>(input), layout, tiling);
    TileRows<Storage> spikes_rows(mutable_elements<Storage>(spikes), layout, tiling);
    TileRows<Storage> membrane_rows(mutable_elements<Storage>(membrane), layout, tiling);
    ParameterRows<Storage> parameter_rows(tiling.width());
    RowBuffer<Real> state(2, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      input_rows.enter(tile);
      spikes_rows.enter(tile);
      membrane_rows.enter(tile);
      fill_lanes(state[0], initial.membrane, tile);
      fill_lanes(state[1], initial.spikes, tile);
      LifForwardRow<Storage> row{};
      row.width = tile.width;
      row.neuron = parameter_rows.fill(parameters, layout, tile);
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
          kernels.lif_forward(reset, parameters.max_spikes > 1, row);
        }
        spikes_rows.put(begin, end);
        membrane_rows.put(begin, end);
      });
    }
  });
}

struct Backward {
  const Tensor& membrane;
  const std::optional<Tensor>& grad_spikes;
  const std::optional<Tensor>& grad_membrane;
  Parameters parameters;
  State initial;
  Reset reset;
  SurrogateKind surrogate;
  double slope;
  double scale;
  Method method;
};

// The rows of `lane_gradients`, one value a lane: initial membrane, initial spikes, alpha, threshold, reset_by, min_membrane.
constexpr std::int64_t kLaneGradients = 6;

template <class Storage>
void backward(const Backward& args, const Layout& layout, Tensor& grad_input, Tensor& lane_gradients) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const bool with_lanes = lane_gradients.numel() > 0;
  const bool needs_spikes = with_lanes || args.reset == Reset::zero;
  const Storage* grad_spikes = elements_like<Storage>(args.grad_spikes, args.membrane);
  const Storage* grad_membrane = elements_like<Storage>(args.grad_membrane, args.membrane);
  const Tiling tiling(layout, threads_for(args.membrane.numel()));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> membrane_rows(elements<Storage>(args.membrane), layout, tiling);
    TileRows<const Storage> grad_spikes_rows(grad_spikes, layout, tiling);
    TileRows<const Storage> grad_membrane_rows(grad_membrane, layout, tiling);
    TileRows<Storage> grad_input_rows(mutable_elements<Storage>(grad_input), layout, tiling);
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
      row.neuron = parameter_rows.fill(args.parameters, layout, tile);
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
          kernels.surrogate(args.surrogate, tile.width, row.membrane, row.neuron.threshold, static_cast<Real>(args.slope),
                            static_cast<Real>(args.scale), scratch[0]);
          if (needs_spikes) {
            kernels.fire(tile.width, row.membrane, row.neuron.threshold, row.neuron.max_spikes, scratch[1]);
          }
          kernels.lif_backward(args.method, args.reset, row);
        }
        grad_input_rows.put(begin, end);
        if (with_lanes) sums.add_block();
      });
      if (!with_lanes) continue;
      fill_lanes(initial[0], args.initial.membrane, tile);
      fill_lanes(initial[1], args.initial.spikes, tile);
      kernels.lif_initial(args.method, args.reset,
                          {tile.width, row.neuron, initial[0], initial[1], row.adjoint, initial[2], initial[3], row.sums});
      sums.add_block();
      const Real* totals[kLaneGradients] = {initial[2],    initial[3],    sums.total(0),
                                            sums.total(1), sums.total(2), sums.total(3)};
      for (std::int64_t k = 0; k < kLaneGradients; ++k) {
        std::copy_n(totals[k], tile.width, mutable_elements<Real>(lane_gradients) + k * layout.lanes() + tile.first_lane);
      }
    }
  });
}

Reset reset_of(std::int64_t code, double max_spikes) {
  STD_TORCH_CHECK(code >= 0 && code <= 3, "reset must be in [0, 3], got ", code);
  const Reset reset = static_cast<Reset>(code);
  STD_TORCH_CHECK(max_spikes >= 1 && (max_spikes == 1 || reset != Reset::zero), "reset to zero goes with max_spikes 1");
  return reset;
}

std::tuple<Tensor, Tensor> lif_forward(const Tensor& input, double alpha, double threshold, double reset_by,
                                       double min_membrane, double max_spikes, std::optional<Tensor> alphas,
                                       std::optional<Tensor> thresholds, std::optional<Tensor> resets_by,
                                       std::optional<Tensor> min_membranes, std::optional<Tensor> initial_membrane,
                                       std::optional<Tensor> initial_spikes, std::int64_t reset, std::int64_t time_dim) {
  const Layout layout = layout_of(input, time_dim);
  const Parameters parameters{
      {alpha, alphas}, {threshold, thresholds}, {reset_by, resets_by}, {min_membrane, min_membranes}, max_spikes};
  parameters.check(input, layout);
  check_lanes(initial_membrane, input, layout);
  check_lanes(initial_spikes, input, layout);
  const Reset kind = reset_of(reset, max_spikes);
  Tensor spikes = torch::stable::empty_like(input);
  Tensor membrane = torch::stable::empty_like(input);
  if (input.numel() > 0) {
    dispatch(input, [&](auto element) {
      forward<decltype(element)>(input, parameters, {initial_membrane, initial_spikes}, kind, layout, spikes, membrane);
    });
  }
  return {spikes, membrane};
}

std::tuple<Tensor, Tensor> lif_backward(const Tensor& membrane, std::optional<Tensor> grad_spikes,
                                        std::optional<Tensor> grad_membrane, double alpha, double threshold,
                                        double reset_by, double min_membrane, double max_spikes,
                                        std::optional<Tensor> alphas, std::optional<Tensor> thresholds,
                                        std::optional<Tensor> resets_by, std::optional<Tensor> min_membranes,
                                        std::optional<Tensor> initial_membrane, std::optional<Tensor> initial_spikes,
                                        std::int64_t reset, std::int64_t surrogate, double slope, double scale,
                                        std::int64_t method, bool with_lanes, std::int64_t time_dim) {
  const Layout layout = layout_of(membrane, time_dim);
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= 7, "surrogate must be in [0, 7], got ", surrogate);
  STD_TORCH_CHECK(method == 0 || method == 1, "method must be 0 or 1, got ", method);
  const Backward args{
      membrane,
      grad_spikes,
      grad_membrane,
      {{alpha, alphas}, {threshold, thresholds}, {reset_by, resets_by}, {min_membrane, min_membranes}, max_spikes},
      {initial_membrane, initial_spikes},
      reset_of(reset, max_spikes),
      static_cast<SurrogateKind>(surrogate),
      slope,
      scale,
      static_cast<Method>(method)};
  args.parameters.check(membrane, layout);
  check_lanes(initial_membrane, membrane, layout);
  check_lanes(initial_spikes, membrane, layout);
  Tensor grad_input = torch::stable::empty_like(membrane);
  const std::vector<std::int64_t> lane_shape = {with_lanes ? kLaneGradients : 0, layout.outer, layout.inner};
  Tensor lane_gradients = layout.time > 0 ? torch::stable::new_empty(membrane, lane_shape, compute_dtype(membrane))
                                          : torch::stable::new_zeros(membrane, lane_shape, compute_dtype(membrane));
  if (membrane.numel() > 0) {
    dispatch(membrane, [&](auto element) { backward<decltype(element)>(args, layout, grad_input, lane_gradients); });
  }
  return {grad_input, lane_gradients};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) {
  m.impl("lif_forward", TORCH_BOX(&lif_forward));
  m.impl("lif_backward", TORCH_BOX(&lif_backward));
}

}  // namespace exodus::cpu
