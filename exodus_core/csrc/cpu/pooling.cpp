// Pooling over (height, width): the largest value or the mean of each window of a plane, and their gradients.
//
// A plane is computed by itself, so that the bits do not depend on the threads. The backward pass of the largest values
// reads the place of each in its window, a byte, and writes every element of the gradient once.
#include <algorithm>
#include <vector>

#include "backend.h"

namespace exodus::cpu {
namespace {

using Sizes = std::vector<std::int64_t>;

constexpr std::int64_t kMostPlaces = 255;  // of a window of which a byte is to say where its largest value is

PoolAxis axis_of(std::int64_t size, std::int64_t taps, std::int64_t stride, std::int64_t padding) {
  STD_TORCH_CHECK(size > 0 && taps > 0 && stride > 0 && padding >= 0 && 2 * padding <= taps,
                  "size, kernel_size and stride must be positive, and padding at most half of kernel_size");
  const std::int64_t room = size + 2 * padding - taps;
  STD_TORCH_CHECK(room >= 0, "kernel_size must be at most the padded size, ", size + 2 * padding, ", got ", taps);
  return {size, room / stride + 1, taps, stride, padding};
}

PoolWindows windows_of(const Sizes& size, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                       std::int64_t divisor) {
  for (const Sizes* sizes : {&size, &kernel_size, &stride, &padding}) {
    STD_TORCH_CHECK(sizes->size() == 2, "sizes must be of two dimensions, got ", sizes->size());
  }
  const PoolAxis y = axis_of(size[0], kernel_size[0], stride[0], padding[0]);
  const PoolAxis x = axis_of(size[1], kernel_size[1], stride[1], padding[1]);
  const bool differ = divisor == 0 && (y.padding > 0 || x.padding > 0);
  return {y, x, static_cast<double>(divisor == 0 && !differ ? y.taps * x.taps : divisor)};
}

void check_planes(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.dim() >= 2,
                  "a tensor must be contiguous, of shape (..., height, width) and on CPU");
}

void check_places(const PoolWindows& windows) {
  STD_TORCH_CHECK(windows.y.taps * windows.x.taps <= kMostPlaces, "a window must have at most ", kMostPlaces,
                  " places, got ", windows.y.taps * windows.x.taps);
}

Sizes planes_of(const Tensor& tensor, std::int64_t height, std::int64_t width) {
  Sizes sizes(tensor.sizes().begin(), tensor.sizes().end());
  sizes[sizes.size() - 2] = height;
  sizes[sizes.size() - 1] = width;
  return sizes;
}

// The memory of PoolScratch; windows that are pairs need none.
template <class Real>
class PoolMemory {
 public:
  // With `sums` of a plane instead of rows.
  PoolMemory(const PoolWindows& windows, bool sums)
      : slots_(windows.y.taps),
        phases_(std::min(windows.x.stride, windows.x.taps)),
        span_(span_of(windows.x)),
        rows_(windows.has_pairs() ? 0 : sums ? 1 : slots_ * phases_, sums ? windows.y.size * windows.x.size : span_),
        lines_(3, std::max(round_up(windows.x.outputs), round_up(ceil_div(windows.x.size, 2)) * 2)),
        bytes_(2, round_up(windows.x.outputs)) {}

  PoolScratch<Real> view() const {
    return {slots_, phases_, rows_.stride(), rows_[0], lines_[0], lines_[1], lines_[2], bytes_[0], bytes_[1]};
  }

 private:
  static std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
  static std::int64_t round_up(std::int64_t n) { return ceil_div(n, kMinTileLanes) * kMinTileLanes; }
  // Room for the last vector of windows at the last tap, and for all places of the row in whole vectors.
  static std::int64_t span_of(const PoolAxis& x) {
    return std::max(round_up(x.outputs) + (x.taps - 1) / x.stride,
                    (x.size + x.padding) / x.stride + 1 + kMinTileLanes);
  }

  std::int64_t slots_;
  std::int64_t phases_;
  std::int64_t span_;
  RowBuffer<Real> rows_;
  RowBuffer<Real> lines_;
  RowBuffer<std::uint8_t> bytes_;
};

// Calls body(first, last, scratch) with shares of the planes on torch's threads.
template <class Storage, class Body>
void for_each_share(std::int64_t planes, const PoolWindows& windows, bool sums, Body body) {
  constexpr std::int64_t kGrainSize = 16384;  // elements that are worth waking a thread
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainSize / (windows.y.size * windows.x.size));
  torch::stable::parallel_for(0, planes, grain, [&](std::int64_t first, std::int64_t last) {
    const PoolMemory<compute_t<Storage>> memory(windows, sums);
    body(first, last, memory.view());
  });
}

template <class Storage, class Kernel>
void pool(Kernel kernel, const PoolWindows& windows, const Tensor& input, const Tensor& output, const Tensor& places) {
  const std::int64_t size = windows.y.size * windows.x.size, outputs = windows.y.outputs * windows.x.outputs;
  const std::int64_t planes = input.numel() / size;
  std::uint8_t* found = places.numel() > 0 ? mutable_elements<std::uint8_t>(places) : nullptr;
  for_each_share<Storage>(planes, windows, false, [&](std::int64_t first, std::int64_t last, const auto& scratch) {
    kernel(PoolForward<Storage>{last - first, planes - last, windows, elements<Storage>(input) + first * size,
                                mutable_elements<Storage>(output) + first * outputs,
                                found == nullptr ? nullptr : found + first * outputs, scratch});
  });
}

template <class Storage, class Kernel>
void pool_backward(Kernel kernel, const PoolWindows& windows, const Tensor& grad, const std::uint8_t* places,
                   const Tensor& grad_input) {
  const std::int64_t size = windows.y.size * windows.x.size, outputs = windows.y.outputs * windows.x.outputs;
  const std::int64_t planes = grad_input.numel() / size;
  for_each_share<Storage>(planes, windows, places != nullptr, [&](std::int64_t first, std::int64_t last, const auto& scratch) {
    kernel(PoolBackward<Storage>{last - first, planes - last, windows, elements<Storage>(grad) + first * outputs,
                                 places == nullptr ? nullptr : places + first * outputs,
                                 mutable_elements<Storage>(grad_input) + first * size, scratch});
  });
}

void check_outputs(const Tensor& grad, const PoolWindows& windows) {
  STD_TORCH_CHECK(grad.size(grad.dim() - 2) == windows.y.outputs && grad.size(grad.dim() - 1) == windows.x.outputs,
                  "grad must be of shape (..., ", windows.y.outputs, ", ", windows.x.outputs, ")");
}

PoolWindows windows_over(const Tensor& input, const Sizes& kernel_size, const Sizes& stride, const Sizes& padding,
                         std::int64_t divisor) {
  check_planes(input);
  return windows_of({input.size(input.dim() - 2), input.size(input.dim() - 1)}, kernel_size, stride, padding, divisor);
}

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& input, Sizes kernel_size, Sizes stride, Sizes padding,
                                      bool with_places) {
  const PoolWindows windows = windows_over(input, kernel_size, stride, padding, 1);
  check_places(windows);
  const Sizes sizes = planes_of(input, windows.y.outputs, windows.x.outputs);
  Tensor output = output_of(input, sizes);
  Tensor places = with_places ? output_of(input, sizes, ScalarType::Byte)
                              : torch::stable::new_empty(input, {0}, ScalarType::Byte);
  dispatch(input, [&](auto element) {
    using Storage = decltype(element);
    if (input.numel() > 0) pool<Storage>(row_kernels<Storage>().max_pool, windows, input, output, places);
  });
  return {output, places};
}

Tensor max_pool2d_backward(const Tensor& grad, const Tensor& places, Sizes size, Sizes kernel_size, Sizes stride,
                           Sizes padding) {
  check_planes(grad);
  check_planes(places);
  const PoolWindows windows = windows_of(size, kernel_size, stride, padding, 1);
  check_places(windows);
  check_outputs(grad, windows);
  STD_TORCH_CHECK(places.scalar_type() == ScalarType::Byte && places.numel() == grad.numel(),
                  "places must be bytes, as many as grad has elements");
  Tensor grad_input = output_of(grad, planes_of(grad, size[0], size[1]));
  dispatch(grad, [&](auto element) {
    using Storage = decltype(element);
    if (grad.numel() == 0) return;
    pool_backward<Storage>(row_kernels<Storage>().max_pool_backward, windows, grad, elements<std::uint8_t>(places),
                           grad_input);
  });
  return grad_input;
}

Tensor avg_pool2d(const Tensor& input, Sizes kernel_size, Sizes stride, Sizes padding, std::int64_t divisor) {
  const PoolWindows windows = windows_over(input, kernel_size, stride, padding, divisor);
  Tensor output = output_of(input, planes_of(input, windows.y.outputs, windows.x.outputs));
  const Tensor places = torch::stable::new_empty(input, {0}, ScalarType::Byte);
  dispatch(input, [&](auto element) {
    using Storage = decltype(element);
    if (input.numel() > 0) pool<Storage>(row_kernels<Storage>().avg_pool, windows, input, output, places);
  });
  return output;
}

Tensor avg_pool2d_backward(const Tensor& grad, Sizes size, Sizes kernel_size, Sizes stride, Sizes padding,
                           std::int64_t divisor) {
  check_planes(grad);
  const PoolWindows windows = windows_of(size, kernel_size, stride, padding, divisor);
  check_outputs(grad, windows);
  Tensor grad_input = output_of(grad, planes_of(grad, size[0], size[1]));
  dispatch(grad, [&](auto element) {
    using Storage = decltype(element);
    if (grad.numel() == 0) return;
    pool_backward<Storage>(row_kernels<Storage>().avg_pool_backward, windows, grad, nullptr, grad_input);
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d));
  m.impl("avg_pool2d_backward", TORCH_BOX(&avg_pool2d_backward));
}

}  // namespace exodus::cpu
