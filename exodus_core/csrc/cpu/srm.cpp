// SRM neurons with any causal reset kernel on the CPU (equations 6 to 8 and 22 of arXiv 2205.10242).
#include <tuple>

#include "kernel_state.h"

namespace exodus::cpu {
namespace {

template <class Storage>
void forward(const Tensor& psp, const CausalKernel& kernel, const Parameter& threshold, const Layout& layout,
             Tensor& spikes, Tensor& membrane) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Tiling tiling(layout, threads_for(psp.numel()), kernel.max_width(sizeof(Real)));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> psp_rows(elements<Storage>(psp), layout, tiling);
    TileRows<Storage> spikes_rows(mutable_elements<Storage>(spikes), layout, tiling);
    TileRows<Storage> membrane_rows(mutable_elements<Storage>(membrane), layout, tiling);
    KernelState<Storage> reset(kernel, tiling.width());
    RowBuffer<Real> scratch(2, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      psp_rows.enter(tile);
      spikes_rows.enter(tile);
      membrane_rows.enter(tile);
      threshold.fill(scratch[0], layout, tile);
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

struct Backward {
  const Tensor& membrane;
  const std::optional<Tensor>& grad_spikes;
  const std::optional<Tensor>& grad_membrane;
  const CausalKernel& kernel;
  Parameter threshold;
  SurrogateKind surrogate;
  double slope;
  double scale;
  Method method;
};

template <class Storage>
void backward(const Backward& args, const Layout& layout, Tensor& grad_psp, Tensor& grad_threshold) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const bool with_threshold = grad_threshold.numel() > 0;
  const Storage* grad_spikes = elements_like<Storage>(args.grad_spikes, args.membrane);
  const Storage* grad_membrane = elements_like<Storage>(args.grad_membrane, args.membrane);
  const Tiling tiling(layout, threads_for(args.membrane.numel()), args.kernel.max_width(sizeof(Real)));
  for_each_tile_range(tiling, [&](std::int64_t first, std::int64_t last) {
    TileRows<const Storage> membrane_rows(elements<Storage>(args.membrane), layout, tiling);
    TileRows<const Storage> grad_spikes_rows(grad_spikes, layout, tiling);
    TileRows<const Storage> grad_membrane_rows(grad_membrane, layout, tiling);
    TileRows<Storage> grad_psp_rows(mutable_elements<Storage>(grad_psp), layout, tiling);
    KernelState<Storage> reset(args.kernel, tiling.width());
    RowBuffer<Real> scratch(3, tiling.width());
    BlockSums<Real> threshold_sum(with_threshold ? 1 : 0, tiling.width());
    for (std::int64_t index = first; index < last; ++index) {
      const Tile tile = tiling[index];
      membrane_rows.enter(tile);
      grad_spikes_rows.enter(tile);
      grad_membrane_rows.enter(tile);
      grad_psp_rows.enter(tile);
      threshold_sum.clear();
      args.threshold.fill(scratch[0], layout, tile);
      reset.reset(tile.width);
      for_each_block(layout.time, Direction::backward, [&](std::int64_t begin, std::int64_t end) {
        membrane_rows.read(begin, end);
        grad_spikes_rows.read(begin, end);
        grad_membrane_rows.read(begin, end);
        grad_psp_rows.prepare(begin);
        for (std::int64_t t = end - 1; t >= begin; --t) {
          kernels.surrogate(args.surrogate, tile.width, membrane_rows[t], scratch[0], static_cast<Real>(args.slope),
                            static_cast<Real>(args.scale), scratch[1]);
          kernels.srm_backward({tile.width, grad_spikes_rows[t], grad_membrane_rows[t], scratch[1], reset.response(),
                                grad_psp_rows[t], scratch[2], with_threshold ? threshold_sum.block(0) : nullptr});
          // SLAYER drops the reset: nothing is remembered, so the response stays zero.
          if (args.method == Method::exodus) reset.push(scratch[2]);
        }
        grad_psp_rows.put(begin, end);
        threshold_sum.add_block();
      });
      if (with_threshold) {
        std::copy_n(threshold_sum.total(0), tile.width, mutable_elements<Real>(grad_threshold) + tile.first_lane);
      }
    }
  });
}

std::tuple<Tensor, Tensor> srm_forward(const Tensor& psp, std::optional<Tensor> taps, std::vector<double> decay,
                                       std::vector<double> constant, std::vector<double> linear, double threshold,
                                       std::optional<Tensor> thresholds, std::int64_t time_dim) {
  const Layout layout = layout_of(psp, time_dim);
  const CausalKernel kernel = kernel_of(taps, decay, constant, linear, psp, layout);
  const Parameter parameter{threshold, thresholds};
  parameter.check(psp, layout);
  Tensor spikes = torch::stable::empty_like(psp);
  Tensor membrane = torch::stable::empty_like(psp);
  if (psp.numel() > 0) {
    dispatch(psp, [&](auto element) { forward<decltype(element)>(psp, kernel, parameter, layout, spikes, membrane); });
  }
  return {spikes, membrane};
}

std::tuple<Tensor, Tensor> srm_backward(const Tensor& membrane, std::optional<Tensor> grad_spikes,
                                        std::optional<Tensor> grad_membrane, std::optional<Tensor> taps,
                                        std::vector<double> decay, std::vector<double> constant,
                                        std::vector<double> linear, double threshold, std::optional<Tensor> thresholds,
                                        std::int64_t surrogate, double slope, double scale, std::int64_t method,
                                        bool with_threshold, std::int64_t time_dim) {
  const Layout layout = layout_of(membrane, time_dim);
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= 7, "surrogate must be in [0, 7], got ", surrogate);
  STD_TORCH_CHECK(method == 0 || method == 1, "method must be 0 or 1, got ", method);
  const CausalKernel kernel = kernel_of(taps, decay, constant, linear, membrane, layout);
  const Backward args{membrane,
                      grad_spikes,
                      grad_membrane,
                      kernel,
                      {threshold, thresholds},
                      static_cast<SurrogateKind>(surrogate),
                      slope,
                      scale,
                      static_cast<Method>(method)};
  args.threshold.check(membrane, layout);
  Tensor grad_psp = torch::stable::empty_like(membrane);
  const std::vector<std::int64_t> lane_shape = {with_threshold ? layout.outer : 0, layout.inner};
  Tensor grad_threshold = torch::stable::new_zeros(membrane, lane_shape, compute_dtype(membrane));
  if (membrane.numel() > 0) {
    dispatch(membrane, [&](auto element) { backward<decltype(element)>(args, layout, grad_psp, grad_threshold); });
  }
  return {grad_psp, grad_threshold};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) {
  m.impl("srm_forward", TORCH_BOX(&srm_forward));
  m.impl("srm_backward", TORCH_BOX(&srm_backward));
}

}  // namespace exodus::cpu
