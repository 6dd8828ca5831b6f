// dL/ds of convolutions from the elements of dL/dx that are not zero, as behind a max pool, which hands its gradient on
// to one place of each window.
//
// The channels of a place lie next to each other. So the places that a row of the kernel sees are one run of elements,
// and so are an output's weights of that row: each place of dL/dx chooses rows of weights by its outputs, and their sum
// is added to the run that its window sees. Rows of the kernel, places and outputs come in ascending order: the bits do
// not depend on the threads or the instruction set.
#include <algorithm>
#include <cmath>
#include <vector>

#include "backend.h"
#include "convolution_geometry.h"
#include "sparse_product.h"
#include "spike_lists.h"

namespace exodus::cpu {
namespace {

// The weights that rows of the kernel have for an output: elements (tap, channel), in parts that are summed at once.
template <class Storage>
class KernelRows {
 public:
  using Real = compute_t<Storage>;

  KernelRows(const Geometry& geometry, const Storage* weight)
      : outputs_(geometry.outputs),
        elements_(geometry.x.taps * geometry.channels),
        parts_(ceil_div(bytes(elements_), kMostChosenBytes)),
        width_(bytes(ceil_div(elements_, parts_)) / static_cast<std::int64_t>(sizeof(Real))),
        rows_(1, geometry.y.taps * parts_ * outputs_ * width_) {
    const std::int64_t channels = geometry.channels;
    for (std::int64_t o = 0; o < outputs_; ++o) {
      for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t y = 0; y < geometry.y.taps; ++y) {
          for (std::int64_t x = 0; x < geometry.x.taps; ++x) {
            const std::int64_t element = x * channels + c, p = element / width_;
            part(y, p)[o * width_ + element - p * width_] = load(*weight++);
          }
        }
      }
    }
  }

  std::int64_t parts() const { return parts_; }
  // Elements of a part; those of the last one go beyond the row, and are zero there.
  std::int64_t width() const { return width_; }
  std::int64_t width_in_row(std::int64_t p) const { return std::min(width_, elements_ - p * width_); }
  Real* part(std::int64_t y, std::int64_t p) const { return rows_[0] + (y * parts_ + p) * outputs_ * width_; }

 private:
  static std::int64_t bytes(std::int64_t elements) {
    return ceil_div(elements * static_cast<std::int64_t>(sizeof(Real)), kLineBytes) * kLineBytes;
  }

  std::int64_t outputs_;
  std::int64_t elements_;
  std::int64_t parts_;
  std::int64_t width_;
  RowBuffer<Real> rows_;
};

// Sums of an image, channels last, with margins of the padding and room behind them for the last part of a row.
template <class Storage>
class ImageSums {
 public:
  using Real = compute_t<Storage>;

  ImageSums(const Geometry& geometry, std::int64_t room)
      : geometry_(geometry),
        sums_(1, padded_elements(geometry) + room),
        stored_(1, kInPlace ? 0 : geometry.x.size * geometry.channels) {}

  static std::int64_t padded_elements(const Geometry& geometry) {
    return (geometry.y.size + 2 * geometry.y.padding) * (geometry.x.size + 2 * geometry.x.padding) * geometry.channels;
  }

  void clear() { sums_.clear(); }
  Real* row(std::int64_t y) const { return sums_[0] + y * pitch(); }

  // The first element that each window sees.
  std::vector<std::uint32_t> windows() const {
    std::vector<std::uint32_t> first;
    for (std::int64_t y = 0; y < geometry_.y.outputs(); ++y) {
      for (std::int64_t x = 0; x < geometry_.x.outputs(); ++x) {
        const std::int64_t at = y * geometry_.y.stride * pitch() + x * geometry_.x.stride * geometry_.channels;
        first.push_back(static_cast<std::uint32_t>(at));
      }
    }
    return first;
  }

  // The image without its margins, channels first.
  void write(Storage* to) const {
    const RowKernels<Storage>& kernels = row_kernels<Storage>();
    const std::int64_t width = geometry_.x.size, channels = geometry_.channels, plane = width * geometry_.y.size;
    for (std::int64_t y = 0; y < geometry_.y.size; ++y) {
      const Real* const from = row(y + geometry_.y.padding) + geometry_.x.padding * channels;
      if constexpr (kInPlace) {
        kernels.from_rows(channels, width, from, channels, to + y * width, plane);
      } else {
        kernels.store(width * channels, from, stored_[0]);
        kernels.from_rows(channels, width, stored_[0], channels, to + y * width, plane);
      }
    }
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<Storage, Real>;

  std::int64_t pitch() const { return (geometry_.x.size + 2 * geometry_.x.padding) * geometry_.channels; }

  const Geometry& geometry_;
  RowBuffer<Real> sums_;
  RowBuffer<Storage> stored_;
};

// The outputs that have a gradient at each place, as offsets of their weights, and those gradients.
template <class Real>
struct PlaceLists {
  std::vector<std::uint32_t> first;
  std::vector<std::uint32_t> last;  // the entry behind it
  std::vector<std::uint32_t> from;
  std::vector<Real> values;
  bool finite = true;

  // With room for all outputs.
  PlaceLists(std::int64_t places, std::int64_t outputs) : from(places * outputs), values(places * outputs) {
    for (std::int64_t p = 0; p < places; ++p) first.push_back(static_cast<std::uint32_t>(p * outputs));
  }

  // Reads the elements (output, place) of an image that are not zero; the weights of the next output lie `stride` behind.
  template <class Storage>
  void read(const SpikeRows<Storage>& grad, std::int64_t image, std::int64_t stride) {
    const Storage* const elements = grad.values + image * grad.columns;
    const auto places = static_cast<std::int64_t>(first.size());
    std::int64_t output = 0, begin = 0;
    last = first;
    finite = true;
    grad.for_each(image, [&](std::int64_t element) {
      if (element >= begin + places) {
        output = element / places;
        begin = output * places;
      }
      const std::uint32_t entry = last[element - begin]++;
      from[entry] = static_cast<std::uint32_t>(output * stride);
      values[entry] = load(elements[element]);
      finite &= std::isfinite(values[entry]);
    });
  }
};

// The sums of chosen rows for the first `elements` of a row: zeros behind them would become NaN where a gradient is not
// finite.
template <class Real>
void add_chosen_elements(const ChosenRows<Real>& call, std::int64_t elements) {
  for (std::int64_t r = 0; r < call.lists; ++r) {
    for (std::uint32_t k = call.first[r]; k < call.last[r]; ++k) {
      const Real* const row = call.rows + call.from[k];
      for (std::int64_t i = 0; i < elements; ++i) call.sums[call.to[r] + i] += call.values[k] * row[i];
    }
  }
}

template <class Storage>
void convolve_gradient(const SpikeRows<Storage>& grad, const Geometry& geometry, const Tensor& weight,
                       const Tensor& gradient) {
  using Real = compute_t<Storage>;
  const KernelRows<Storage> kernel(geometry, elements<Storage>(weight));
  torch::stable::parallel_for(0, geometry.images, 1, [&](std::int64_t first, std::int64_t last) {
    ImageSums<Storage> sums(geometry, kernel.parts() * kernel.width());
    const std::vector<std::uint32_t> windows = sums.windows();
    PlaceLists<Real> lists(geometry.places(), geometry.outputs);
    ChosenRows<Real> call{};
    call.lists = geometry.places();
    call.bytes = kernel.width() * static_cast<std::int64_t>(sizeof(Real));
    for (std::int64_t i = first; i < last; ++i) {
      lists.read(grad, i, kernel.width());
      call.first = lists.first.data(), call.last = lists.last.data();
      call.from = lists.from.data(), call.values = lists.values.data();
      call.to = windows.data();
      sums.clear();
      for (std::int64_t y = 0; y < geometry.y.taps; ++y) {
        for (std::int64_t p = 0; p < kernel.parts(); ++p) {
          call.rows = kernel.part(y, p);
          call.sums = sums.row(y) + p * kernel.width();
          if (lists.finite) {
            row_kernels<Storage>().add_chosen_rows(call);
          } else {
            add_chosen_elements(call, kernel.width_in_row(p));
          }
        }
      }
      sums.write(mutable_elements<Storage>(gradient) + i * geometry.elements());
    }
  });
}

Tensor sparse_gradient_convolution(const Tensor& bits, const Tensor& grad, const Tensor& weight, Sizes size,
                                   Sizes stride, Sizes padding) {
  const Geometry geometry = geometry_of(bits.size(0), weight, size, stride, padding, {1, 1}, 1);
  const std::int64_t columns = geometry.outputs * geometry.places();
  check_spikes(bits, grad, columns, weight);
  constexpr std::int64_t kMost = std::int64_t{1} << 31;  // offsets have 32 bits
  STD_TORCH_CHECK(columns < kMost && ImageSums<float>::padded_elements(geometry) < kMost,
                  "an image with its padding, and its gradient, must have fewer than 2**31 elements");
  Tensor gradient = output_of(weight, {geometry.images, geometry.channels, geometry.y.size, geometry.x.size});
  dispatch(weight, [&](auto element) {
    using Storage = decltype(element);
    convolve_gradient<Storage>(spike_rows<Storage>(bits, grad, columns), geometry, weight, gradient);
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) { m.impl("sparse_gradient_convolution", TORCH_BOX(&sparse_gradient_convolution)); }

}  // namespace exodus::cpu
