// The windows of a convolution, and the checks of its arguments.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "backend.h"

namespace exodus::cpu {

using Sizes = std::vector<std::int64_t>;

// One axis of a convolution.
struct Axis {
  std::int64_t size;
  std::int64_t taps;
  std::int64_t stride;
  std::int64_t padding;
  std::int64_t dilation;

  std::int64_t outputs() const {
    const std::int64_t room = size + 2 * padding - dilation * (taps - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
  }
};

struct Geometry {
  std::int64_t images;
  std::int64_t channels;
  std::int64_t outputs;  // channels
  std::int64_t groups;
  Axis y;
  Axis x;

  std::int64_t group_channels() const { return channels / groups; }
  std::int64_t group_outputs() const { return outputs / groups; }
  std::int64_t kernel() const { return y.taps * x.taps; }
  std::int64_t columns() const { return group_channels() * kernel(); }
  std::int64_t elements() const { return channels * y.size * x.size; }
  std::int64_t places() const { return y.outputs() * x.outputs(); }
  // The windows that see an element are looked up in lists.
  bool listed() const { return y.stride > 1 || x.stride > 1 || !has_kernel_without_lists(x.taps); }
  // Outputs that do not exist, before the first and behind the last of a row, but that the windows of an element meet.
  std::int64_t margin() const {
    return listed() ? 0 : std::max<std::int64_t>(0, x.dilation * (x.taps - 1) - x.padding);
  }
  std::int64_t pitch() const { return x.outputs() + margin(); }
};

inline Geometry geometry_of(std::int64_t images, const Tensor& weight, const Sizes& size, const Sizes& stride,
                            const Sizes& padding, const Sizes& dilation, std::int64_t groups) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.is_contiguous() && weight.dim() == 4 && weight.numel() > 0,
                  "weight must be a contiguous tensor (outputs, channels of a group, height, width) on CPU");
  for (const Sizes* sizes : {&size, &stride, &padding, &dilation}) {
    STD_TORCH_CHECK(sizes->size() == 2, "sizes must be of two dimensions, got ", sizes->size());
  }
  STD_TORCH_CHECK(std::min(size[0], size[1]) > 0 && std::min(stride[0], stride[1]) > 0 &&
                      std::min(padding[0], padding[1]) >= 0 && std::min(dilation[0], dilation[1]) > 0,
                  "size, stride and dilation must be positive, and padding at least 0");
  STD_TORCH_CHECK(groups > 0 && weight.size(0) % groups == 0, "groups must divide the outputs, got ", groups);
  const Geometry geometry{images,
                          weight.size(1) * groups,
                          weight.size(0),
                          groups,
                          {size[0], weight.size(2), stride[0], padding[0], dilation[0]},
                          {size[1], weight.size(3), stride[1], padding[1], dilation[1]}};
  constexpr std::int64_t kMost = std::int64_t{1} << 31;  // offsets have 32 bits
  STD_TORCH_CHECK(geometry.places() > 0 && geometry.places() < kMost && geometry.columns() < kMost &&
                      geometry.elements() < kMost && geometry.y.size * geometry.pitch() < kMost,
                  "an image must have a window, and fewer than 2**31 elements");
  return geometry;
}

}  // namespace exodus::cpu
