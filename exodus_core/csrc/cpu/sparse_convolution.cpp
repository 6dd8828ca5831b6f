// Convolutions with spikes: each spike adds the kernel's columns of its channel to the outputs whose windows see it, and
// dL/dW gathers dL/dx from them.
//
// Images are turned so that the output channels of a place lie next to each other, as many as a panel holds, with margins
// beside the rows of outputs, where the windows of a spike need not be clipped. An output begins with its bias and is
// summed in ascending order of channel, row and column; table_convolution.h has images of many spikes. dL/dW is summed in
// a fixed number of blocks of images, each of groups of images. So the bits do not depend on the threads or the
// instruction set.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "backend.h"
#include "convolution_geometry.h"
#include "sparse_product.h"
#include "spike_lists.h"
#include "table_convolution.h"
#include "turned_panel.h"

namespace exodus::cpu {
namespace {

// The windows that see each place of an axis; `tap` and `output` are the offsets from one to the next.
struct AxisWindows {
  std::vector<std::uint32_t> first;
  std::vector<WindowsOfPlaces::Window> windows;

  AxisWindows(const Axis& axis, std::int64_t tap, std::int64_t output) : first(1, 0) {
    for (std::int64_t place = 0; place < axis.size; ++place) {
      for (std::int64_t k = 0; k < axis.taps; ++k) {
        const std::int64_t begin = place + axis.padding - k * axis.dilation;
        if (begin < 0 || begin % axis.stride != 0 || begin / axis.stride >= axis.outputs()) continue;
        windows.push_back({static_cast<std::uint32_t>(k * tap), static_cast<std::uint32_t>(begin / axis.stride * output)});
      }
      first.push_back(static_cast<std::uint32_t>(windows.size()));
    }
  }

  WindowsOfPlaces view() const { return {first.data(), windows.data()}; }
};

// Spikes of one image, for one panel of the outputs of one group.
template <class Storage>
class Convolution {
 public:
  using Real = compute_t<Storage>;

  Convolution(const SpikeRows<Storage>& spikes, const Geometry& geometry)
      : spikes_(spikes),
        geometry_(geometry),
        y_(geometry.y, geometry.x.taps, geometry.pitch()),
        x_(geometry.x, 1, 1) {}

  // The elements of an image that are not zero, in ascending order, as WindowSums has them.
  struct Image {
    std::vector<std::uint32_t> rows;
    std::vector<std::uint32_t> elements;
    std::vector<Real> values;
    bool finite;
  };

  void read(std::int64_t image, Image& into) const {
    const std::int64_t width = geometry_.x.size, height = geometry_.y.size, pitch = geometry_.pitch();
    const Storage* const values = spikes_.values == nullptr ? nullptr : spikes_.values + image * geometry_.elements();
    into.rows.assign(geometry_.channels * height + 1, 0);
    into.elements.clear();
    into.values.clear();
    into.finite = true;
    std::int64_t row = -1, end = 0, shift = 0;
    spikes_.for_each(image, [&](std::int64_t element) {
      if (element >= end) {
        row = element / width;
        end = (row + 1) * width;
        shift = row % height * pitch - row * width;
      }
      ++into.rows[row + 1];
      into.elements.push_back(static_cast<std::uint32_t>(element + shift));
      if (values != nullptr) {
        into.values.push_back(load(values[element]));
        into.finite &= std::isfinite(into.values.back());
      }
    });
    for (std::int64_t r = 0; r < geometry_.channels * height; ++r) into.rows[r + 1] += into.rows[r];
  }

  WindowSums<Real> call(const Image& image, std::int64_t group, std::int64_t bytes) const {
    WindowSums<Real> call{};
    call.channels = geometry_.group_channels();
    call.height = geometry_.y.size;
    call.rows = image.rows.data() + group * call.channels * call.height;
    call.elements = image.elements.data();
    call.values = spikes_.values == nullptr ? nullptr : image.values.data();
    call.pitch = geometry_.pitch();
    call.margin = geometry_.margin();
    call.listed = geometry_.listed();
    call.y = y_.view();
    call.x = x_.view();
    call.taps_y = geometry_.y.taps, call.taps_x = geometry_.x.taps;
    call.padding_y = geometry_.y.padding, call.padding_x = geometry_.x.padding;
    call.dilation_y = geometry_.y.dilation, call.dilation_x = geometry_.x.dilation;
    call.outputs_y = geometry_.y.outputs();
    call.bytes = bytes;
    return call;
  }

 private:
  const SpikeRows<Storage>& spikes_;
  const Geometry& geometry_;
  AxisWindows y_;
  AxisWindows x_;
};

// Calls body(group, panel, first output) for the panels of every group.
template <class Real, class Body>
void for_each_panel(const Geometry& geometry, const Panels<Real>& panels, Body body) {
  for (std::int64_t g = 0; g < geometry.groups; ++g) {
    for (std::int64_t p = 0; p < panels.count(); ++p) body(g, p, g * geometry.group_outputs() + panels.begin(p));
  }
}

template <class Storage>
void convolve(const SpikeRows<Storage>& spikes, const Geometry& geometry, const Tensor& weight,
              const OptionalTensor& bias, const Tensor& output) {
  using Real = compute_t<Storage>;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Panels<Real> panels(geometry.group_outputs(), true);
  const Convolution<Storage> convolution(spikes, geometry);
  const std::int64_t columns = geometry.columns(), places = geometry.places(), lanes = panels.lanes();
  const RowTables<Storage> tables(spikes, geometry, weight, bias);
  torch::stable::parallel_for(0, geometry.images, 1, [&](std::int64_t first, std::int64_t last) {
    typename Convolution<Storage>::Image image;
    std::vector<TurnedPanel<Storage>> weights;
    RowBuffer<Real> start(geometry.groups * panels.count(), lanes);
    std::int64_t row = 0;
    for_each_panel(geometry, panels, [&](std::int64_t, std::int64_t p, std::int64_t output_channel) {
      weights.emplace_back(lanes, 1, columns, 0);
      weights.back().read(elements<Storage>(weight) + output_channel * columns, panels.width(p), columns);
      if (bias.has_value()) kernels.load(panels.width(p), elements<Storage>(bias) + output_channel, start[row]);
      ++row;
    });
    TurnedPanel<Storage> sums(lanes, geometry.y.outputs(), geometry.x.outputs(), geometry.margin());
    TableConvolution<Storage> many(last - first, tables, spikes, geometry, output);
    for (std::int64_t i = first; i < last; ++i) {
      if (tables.are_for(i)) {
        many.add(i);
        continue;
      }
      convolution.read(i, image);
      row = 0;
      for_each_panel(geometry, panels, [&](std::int64_t g, std::int64_t p, std::int64_t output_channel) {
        sums.fill(start[row]);
        WindowSums<Real> call = convolution.call(image, g, panels.bytes);
        call.terms = weights[row].elements();
        call.sums = sums.elements();
        kernels.add_windows(call);
        Storage* to = mutable_elements<Storage>(output) + (i * geometry.outputs + output_channel) * places;
        sums.write(to, panels.width(p), places);
        ++row;
      });
    }
    many.finish();
  });
}

// gradient[o][c, ky, kx] = sum over images and windows of grad[image][o][window] s[image][c][what the window sees there]
// bias_gradient[o] = sum over images and windows of grad[image][o][window], of each row and each image first
template <class Storage>
void convolve_transposed(const SpikeRows<Storage>& spikes, const Geometry& geometry, const Tensor& grad,
                         const Tensor& gradient, const Tensor& bias_gradient) {
  using Real = compute_t<Storage>;
  constexpr std::int64_t kBlocks = 16, kGroupImages = 64;
  const RowKernels<Storage>& kernels = row_kernels<Storage>();
  const Panels<Real> panels(geometry.group_outputs(), true);
  const Convolution<Storage> convolution(spikes, geometry);
  const std::int64_t columns = geometry.columns(), places = geometry.places(), lanes = panels.lanes();
  const std::int64_t count = geometry.groups * panels.count();
  const std::int64_t share = ceil_div(geometry.images, kBlocks), blocks = ceil_div(geometry.images, share);
  std::vector<TurnedPanel<Storage>> totals;
  for (std::int64_t i = 0; i < blocks * count; ++i) totals.emplace_back(lanes, 1, columns, 0);
  RowBuffer<Real> bias_totals(blocks * count, lanes);
  torch::stable::parallel_for(0, blocks, 1, [&](std::int64_t first, std::int64_t last) {
    typename Convolution<Storage>::Image image;
    TurnedPanel<Storage> terms(lanes, geometry.y.outputs(), geometry.x.outputs(), geometry.margin());
    std::vector<TurnedPanel<Storage>> group;
    for (std::int64_t i = 0; i < count; ++i) group.emplace_back(lanes, 1, columns, 0);
    RowBuffer<Real> bias_group(count, lanes), bias(2, lanes);  // of a row, and of an image
    const auto add = [](Real* sum, Real* part, std::int64_t size) {
      for (std::int64_t i = 0; i < size; ++i) sum[i] += part[i];
      std::fill_n(part, size, Real(0));
    };
    for (std::int64_t b = first; b < last; ++b) {
      const std::int64_t begin = b * share, end = std::min(geometry.images, begin + share);
      for (std::int64_t i = begin; i < end; ++i) {
        convolution.read(i, image);
        std::int64_t row = 0;
        for_each_panel(geometry, panels, [&](std::int64_t g, std::int64_t p, std::int64_t output_channel) {
          const Storage* from = elements<Storage>(grad) + (i * geometry.outputs + output_channel) * places;
          terms.read(from, panels.width(p), places);
          for (std::int64_t y = 0; y < geometry.y.outputs(); ++y) {
            const Real* const outputs = terms.elements() + (geometry.margin() + y * geometry.pitch()) * lanes;
            for (std::int64_t x = 0; x < geometry.x.outputs(); ++x) {
              for (std::int64_t lane = 0; lane < lanes; ++lane) bias[0][lane] += outputs[x * lanes + lane];
            }
            add(bias[1], bias[0], lanes);
          }
          add(bias_group[row], bias[1], lanes);
          WindowSums<Real> call = convolution.call(image, g, panels.bytes);
          if (call.rows[0] < call.rows[call.channels * call.height]) {
            call.to_taps = true;
            call.listed |= !image.finite;  // zero times what is not finite is NaN, in the margins too
            call.terms = terms.elements();
            call.sums = group[row].elements();
            kernels.add_windows(call);
          }
          if ((i - begin) % kGroupImages == kGroupImages - 1 || i == end - 1) {
            add(totals[b * count + row].elements(), group[row].elements(), group[row].size());
            add(bias_totals[b * count + row], bias_group[row], lanes);
          }
          ++row;
        });
      }
    }
  });
  std::int64_t row = 0;
  for_each_panel(geometry, panels, [&](std::int64_t, std::int64_t p, std::int64_t output_channel) {
    Real* total = totals[row].elements();
    for (std::int64_t b = 1; b < blocks; ++b) {
      const Real* part = totals[b * count + row].elements();
      for (std::int64_t i = 0; i < totals[row].size(); ++i) total[i] += part[i];
    }
    totals[row].write(mutable_elements<Storage>(gradient) + output_channel * columns, panels.width(p), columns);
    for (std::int64_t b = 1; b < blocks; ++b) {
      for (std::int64_t i = 0; i < lanes; ++i) bias_totals[row][i] += bias_totals[b * count + row][i];
    }
    kernels.store(panels.width(p), bias_totals[row], mutable_elements<Storage>(bias_gradient) + output_channel);
    ++row;
  });
}

Tensor spike_convolution(const Tensor& bits, OptionalTensor values, const Tensor& weight, OptionalTensor bias,
                         Sizes size, Sizes stride, Sizes padding, Sizes dilation, std::int64_t groups) {
  const Geometry geometry = geometry_of(bits.size(0), weight, size, stride, padding, dilation, groups);
  check_spikes(bits, values, geometry.elements(), weight);
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->is_contiguous() && bias->scalar_type() == weight.scalar_type() &&
                        bias->numel() == weight.size(0),
                    "bias must be a contiguous tensor of the weight's dtype with ", weight.size(0), " elements");
  }
  Tensor output = output_of(weight, {geometry.images, geometry.outputs, geometry.y.outputs(), geometry.x.outputs()});
  if (output.numel() == 0) return output;
  dispatch(weight, [&](auto element) {
    using Storage = decltype(element);
    const SpikeRows<Storage> spikes = spike_rows<Storage>(bits, values, geometry.elements());
    convolve(spikes, geometry, weight, bias, output);
  });
  return output;
}

std::tuple<Tensor, Tensor> spike_convolution_weight(const Tensor& bits, OptionalTensor values, const Tensor& grad,
                                                    const Tensor& weight, Sizes size, Sizes stride, Sizes padding,
                                                    Sizes dilation, std::int64_t groups) {
  const Geometry geometry = geometry_of(bits.size(0), weight, size, stride, padding, dilation, groups);
  check_spikes(bits, values, geometry.elements(), weight);
  STD_TORCH_CHECK(grad.is_cpu() && grad.is_contiguous() && grad.scalar_type() == weight.scalar_type() &&
                      grad.numel() == geometry.images * geometry.outputs * geometry.places(),
                  "grad must be a contiguous tensor of the weight's dtype and of the output's size");
  if (geometry.images == 0) {
    return {torch::stable::new_zeros(weight, {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}),
            torch::stable::new_zeros(weight, {weight.size(0)})};
  }
  Tensor gradient = output_like(weight), bias_gradient = torch::stable::new_empty(weight, {weight.size(0)});
  dispatch(weight, [&](auto element) {
    using Storage = decltype(element);
    const SpikeRows<Storage> spikes = spike_rows<Storage>(bits, values, geometry.elements());
    convolve_transposed(spikes, geometry, grad, gradient, bias_gradient);
  });
  return {gradient, bias_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(exodus, CPU, m) {
  m.impl("spike_convolution", TORCH_BOX(&spike_convolution));
  m.impl("spike_convolution_weight", TORCH_BOX(&spike_convolution_weight));
}

}  // namespace exodus::cpu
