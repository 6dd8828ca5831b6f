// Convolutions with images of many spikes: the taps of one row of the kernel see a few bits of the image, and what these
// add to the outputs is looked up in a table of all their patterns, which holds the sums of the row's weights.
//
// An output begins with its bias and is summed in ascending order of channel and row, each the sum of its taps in
// ascending order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution_geometry.h"
#include "sparse_product.h"
#include "spike_lists.h"
#include "turned_panel.h"

namespace exodus::cpu {

// The tables of all channels and rows of the kernel, for panels of outputs, and which images they are for.
template <class Storage>
class RowTables {
 public:
  using Real = compute_t<Storage>;
  static constexpr std::int64_t kLanes = kTableBytes / static_cast<std::int64_t>(sizeof(Real));

  RowTables(const SpikeRows<Storage>& spikes, const Geometry& geometry, const Tensor& weight, const OptionalTensor& bias)
      : geometry_(geometry), panels_(ceil_div(geometry.group_outputs(), kLanes)) {
    if (!are_useful(spikes)) return;
    const std::int64_t bytes = spikes.row_bytes();
    for (std::int64_t i = 0; i < geometry.images; ++i) {
      const std::int64_t count = instruction_set().count_ones(bytes, spikes.bits + i * bytes);
      chosen_.push_back(static_cast<double>(count) > kManySpikes * static_cast<double>(geometry.elements()));
    }
    const bool any = std::find(chosen_.begin(), chosen_.end(), true) != chosen_.end();
    if (any) build(elements<Storage>(weight), elements<Storage>(bias));
  }

  bool are_for(std::int64_t image) const { return !chosen_.empty() && chosen_[image]; }
  std::int64_t panels() const { return panels_; }
  // Of the row y of the kernel's channel c, counted within the group.
  const Real* table(std::int64_t group, std::int64_t panel, std::int64_t c, std::int64_t y) const {
    return tables_.data() + offset(group, panel, c, y);
  }
  const Real* bias(std::int64_t group, std::int64_t panel) const {
    return bias_.data() + (group * panels_ + panel) * kLanes;
  }

 private:
  // Of an image's elements: at this share of spikes their sums take as long as the tables, whose time does not depend on
  // it (docs/design-notes.md).
  static constexpr double kManySpikes = 0.15;
  static constexpr std::int64_t kLeastPlaces = 2048;  // of all images: fewer do not pay for building the tables
  static constexpr std::int64_t kMostPlaces = 4096;   // of an image: the sums of more leave the second-level cache

  bool are_useful(const SpikeRows<Storage>& spikes) const {
    return spikes.values == nullptr && geometry_.x.taps == kTableTaps && geometry_.x.dilation == 1 &&
           geometry_.y.stride == 1 && geometry_.x.stride == 1 && geometry_.group_outputs() >= kLanes &&
           geometry_.images * geometry_.places() >= kLeastPlaces && geometry_.places() <= kMostPlaces;
  }

  std::int64_t offset(std::int64_t group, std::int64_t panel, std::int64_t c, std::int64_t y) const {
    const std::int64_t rows = ((group * panels_ + panel) * geometry_.group_channels() + c) * geometry_.y.taps + y;
    return rows * kTableEntries * kLanes;
  }

  void build(const Storage* weight, const Storage* bias) {
    const std::int64_t outputs = geometry_.group_outputs();
    tables_.resize(offset(geometry_.groups, 0, 0, 0));
    bias_.resize(geometry_.groups * panels_ * kLanes);
    for (std::int64_t group = 0; group < geometry_.groups; ++group) {
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        const std::int64_t first = group * outputs + panel * kLanes, width = std::min(kLanes, outputs - panel * kLanes);
        Real* const to = bias_.data() + (group * panels_ + panel) * kLanes;
        for (std::int64_t lane = 0; lane < width && bias != nullptr; ++lane) to[lane] = load(bias[first + lane]);
        for (std::int64_t c = 0; c < geometry_.group_channels(); ++c) {
          for (std::int64_t y = 0; y < geometry_.y.taps; ++y) {
            const std::int64_t row = c * geometry_.kernel() + y * kTableTaps;
            fill(tables_.data() + offset(group, panel, c, y), width, weight + first * geometry_.columns() + row);
          }
        }
      }
    }
  }

  // The sums of every pattern of the taps of a row, for `width` outputs.
  void fill(Real* table, std::int64_t width, const Storage* row) const {
    for (std::int64_t tap = 0; tap < kTableTaps; ++tap) {
      Real added[kLanes] = {};
      for (std::int64_t lane = 0; lane < width; ++lane) added[lane] = load(row[lane * geometry_.columns() + tap]);
      const std::int64_t pattern = std::int64_t{1} << tap;
      for (std::int64_t below = 0; below < pattern; ++below) {
        const Real* const without = table + below * kLanes;
        Real* const with = table + (pattern + below) * kLanes;
        for (std::int64_t lane = 0; lane < kLanes; ++lane) with[lane] = without[lane] + added[lane];
      }
    }
  }

  const Geometry& geometry_;
  std::int64_t panels_;
  std::vector<bool> chosen_;
  std::vector<Real> tables_;
  std::vector<Real> bias_;
};

// The convolution of one thread's images by tables, some of them at once: a few channels' tables, which fit in the
// first-level cache, pass over all of these.
template <class Storage>
class TableConvolution {
 public:
  using Real = compute_t<Storage>;

  // `images`: no more will come.
  TableConvolution(std::int64_t images, const RowTables<Storage>& tables, const SpikeRows<Storage>& spikes,
                   const Geometry& geometry, const Tensor& output)
      : at_once_(std::min({images, kImages, std::max<std::int64_t>(1, kCachedSums / (geometry.places() * kTableBytes))})),
        tables_(tables),
        spikes_(spikes),
        geometry_(geometry),
        output_(mutable_elements<Storage>(output)),
        segments_(ceil_div(geometry.x.outputs(), kTablePlaces)),
        height_(geometry.y.size + 2 * geometry.y.padding) {}

  void add(std::int64_t image) {
    if (words_.empty()) {
      words_.resize(at_once_ * image_words());
      for (std::int64_t i = 0; i < at_once_; ++i) {
        sums_.emplace_back(RowTables<Storage>::kLanes, geometry_.y.outputs(), geometry_.x.outputs(), 0);
      }
    }
    read(image, words_.data() + static_cast<std::int64_t>(images_.size()) * image_words());
    images_.push_back(image);
    if (static_cast<std::int64_t>(images_.size()) == at_once_) finish();
  }

  void finish() {
    for (std::int64_t group = 0; group < geometry_.groups && !images_.empty(); ++group) {
      for (std::int64_t panel = 0; panel < tables_.panels(); ++panel) convolve(group, panel);
    }
    images_.clear();
  }

 private:
  static constexpr std::int64_t kImages = 8;
  static constexpr std::int64_t kCachedTables = 24 << 10, kCachedSums = 256 << 10;  // bytes

  std::int64_t image_words() const { return geometry_.channels * height_ * segments_; }

  // Bit i of a word is the place i places behind the first that the first window of its segment sees.
  void read(std::int64_t image, std::uint16_t* words) {
    std::fill_n(words, image_words(), std::uint16_t{0});
    const std::int64_t width = geometry_.x.size, height = geometry_.y.size;
    std::int64_t begin = 0, end = 0;
    std::uint16_t* row = nullptr;
    spikes_.for_each(image, [&](std::int64_t element) {
      if (element >= end) {
        const std::int64_t r = element / width;
        begin = r * width - geometry_.x.padding;
        end = (r + 1) * width;
        row = words + (r / height * height_ + r % height + geometry_.y.padding) * segments_;
      }
      const std::int64_t place = element - begin, last = std::min(place / kTablePlaces, segments_ - 1);
      for (std::int64_t s = last; s >= 0; --s) {
        const std::int64_t bit = place - s * kTablePlaces;
        if (bit >= kTablePlaces + kTableTaps - 1) break;
        row[s] = static_cast<std::uint16_t>(row[s] | 1u << bit);
      }
    });
  }

  void convolve(std::int64_t group, std::int64_t panel) {
    const std::int64_t channels = geometry_.group_channels(), places = geometry_.places();
    const std::int64_t block =
        std::max<std::int64_t>(1, kCachedTables / (geometry_.y.taps * kTableEntries * kTableBytes));
    const auto images = static_cast<std::int64_t>(images_.size());
    for (std::int64_t i = 0; i < images; ++i) sums_[i].fill(tables_.bias(group, panel));
    TableSums<Real> call{};
    call.taps_y = geometry_.y.taps, call.dilation_y = geometry_.y.dilation;
    call.outputs_y = geometry_.y.outputs(), call.outputs_x = geometry_.x.outputs();
    call.height = height_, call.segments = segments_;
    for (std::int64_t c = 0; c < channels; c += block) {
      call.channels = std::min(block, channels - c);
      call.tables = tables_.table(group, panel, c, 0);
      for (std::int64_t i = 0; i < images; ++i) {
        call.words = words_.data() + i * image_words() + (group * channels + c) * height_ * segments_;
        call.sums = sums_[i].elements();
        row_kernels<Storage>().add_from_tables(call);
      }
    }
    const std::int64_t first = panel * RowTables<Storage>::kLanes, outputs = geometry_.group_outputs();
    const std::int64_t width = std::min(RowTables<Storage>::kLanes, outputs - first);
    for (std::int64_t i = 0; i < images; ++i) {
      sums_[i].write(output_ + (images_[i] * geometry_.outputs + group * outputs + first) * places, width, places);
    }
  }

  std::int64_t at_once_;
  const RowTables<Storage>& tables_;
  const SpikeRows<Storage>& spikes_;
  const Geometry& geometry_;
  Storage* output_;
  std::int64_t segments_;
  std::int64_t height_;
  std::vector<std::int64_t> images_;
  std::vector<std::uint16_t> words_;
  std::vector<TurnedPanel<Storage>> sums_;
};

}  // namespace exodus::cpu
