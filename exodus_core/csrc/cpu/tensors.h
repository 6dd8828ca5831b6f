// What the CPU implementations share at the border to torch: layouts, element types, parameters.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "tiles.h"

namespace exodus::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Layout layout_of(const Tensor& tensor, std::int64_t time_dim) {
  STD_TORCH_CHECK(time_dim >= 0 && time_dim < tensor.dim(), "time_dim must be in [0, ", tensor.dim(), "), got ", time_dim);
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), "expected a contiguous CPU tensor");
  Layout layout{1, tensor.size(time_dim), 1};
  for (std::int64_t d = 0; d < time_dim; ++d) layout.outer *= tensor.size(d);
  for (std::int64_t d = time_dim + 1; d < tensor.dim(); ++d) layout.inner *= tensor.size(d);
  return layout;
}

inline ScalarType compute_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
const T* elements(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_elements(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The elements of an optional companion of `like`, null where it is not given.
template <class T>
const T* elements_like(const std::optional<Tensor>& tensor, const Tensor& like) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->is_contiguous() && tensor->scalar_type() == like.scalar_type() &&
                      tensor->numel() == like.numel(),
                  "expected contiguous CPU tensors of one dtype and size");
  return elements<T>(*tensor);
}

// Calls f with a value of the element type of `tensor`.
template <class F>
auto dispatch(const Tensor& tensor, F f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, float16 or bfloat16");
  }
}

// A parameter of the neuron: one number for all lanes, or a tensor with one number or one number per inner index.
struct Parameter {
  double value;
  const std::optional<Tensor>& tensor;

  template <class Real>
  void fill(Real* row, const Layout& layout, const Tile& tile) const {
    if (!tensor.has_value()) {
      std::fill_n(row, tile.width, static_cast<Real>(value));
      return;
    }
    const Real* values = elements<Real>(*tensor);
    if (tensor->numel() == 1) {
      std::fill_n(row, tile.width, *values);
      return;
    }
    for (std::int64_t lane = 0; lane < tile.width;) {  // one stretch of lanes with the same outer index at a time
      const std::int64_t n = (tile.first_lane + lane) % layout.inner;
      const std::int64_t run = std::min(layout.inner - n, tile.width - lane);
      std::copy_n(values + n, run, row + lane);
      lane += run;
    }
  }

  void check(const Tensor& like, const Layout& layout) const {
    if (!tensor.has_value()) return;
    STD_TORCH_CHECK(tensor->is_cpu() && tensor->is_contiguous() && tensor->scalar_type() == compute_dtype(like) &&
                        (tensor->numel() == 1 || tensor->numel() == layout.inner),
                    "a parameter must be a contiguous CPU tensor of the compute dtype with 1 or ", layout.inner,
                    " elements");
  }
};

// A value per lane, as the initial membrane has it; zeros where it is not given.
template <class Real>
void fill_lanes(Real* row, const std::optional<Tensor>& lanes, const Tile& tile) {
  if (lanes.has_value()) {
    std::copy_n(elements<Real>(*lanes) + tile.first_lane, tile.width, row);
  } else {
    std::fill_n(row, tile.width, Real(0));
  }
}

inline void check_lanes(const std::optional<Tensor>& lanes, const Tensor& like, const Layout& layout) {
  if (!lanes.has_value()) return;
  STD_TORCH_CHECK(lanes->is_cpu() && lanes->is_contiguous() && lanes->scalar_type() == compute_dtype(like) &&
                      lanes->numel() == layout.lanes(),
                  "an initial state must be a contiguous CPU tensor of the compute dtype with ", layout.lanes(),
                  " elements");
}

// Runs body(first, last) over the tiles on torch's own threads; alone where there is little to do.
template <class Body>
void for_each_tile_range(const Tiling& tiling, Body body) {
  if (tiling.count() == 1) {
    body(std::int64_t{0}, std::int64_t{1});
  } else {
    torch::stable::parallel_for(0, tiling.count(), 1, body);
  }
}

// Threads for `count` neuron-steps: waking a thread pays from a few thousand on.
inline std::int64_t threads_for(std::int64_t count) {
  constexpr std::int64_t kWorthAThread = 16384;
  const std::int64_t available = torch::stable::get_num_threads();
  return std::clamp<std::int64_t>(count / kWorthAThread, 1, available);
}

}  // namespace exodus::cpu
