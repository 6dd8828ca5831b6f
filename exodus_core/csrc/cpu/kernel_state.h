// The response of a causal kernel to a sequence of rows: response[t] = sum over k of kernel[k] pushed[t - k].
//
// One state serves the filter, the reset of an SRM neuron forward, and the same reset backward in time, where the rows
// are pushed from the last step to the first. Taps (FIR) cost one pass over a row per tap; a mode, an exponential or an
// alpha function, costs one pass whatever its length.
#pragma once

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace exodus::cpu {

struct CausalKernel {
  const std::optional<Tensor>& taps;
  std::vector<Mode> modes;
  std::int64_t length;  // of the taps, without those that no step is late enough to see

  // Lanes of a tile for which the rows that the kernel remembers stay in the second-level cache.
  std::int64_t max_width(std::int64_t element_size) const {
    constexpr std::int64_t kRemembered = 512 * 1024;
    return kRemembered / (element_size * std::max<std::int64_t>(1, length));
  }
};

inline CausalKernel kernel_of(const std::optional<Tensor>& taps, const std::vector<double>& decay,
                              const std::vector<double>& constant, const std::vector<double>& linear, const Tensor& like,
                              const Layout& layout) {
  STD_TORCH_CHECK(decay.size() == constant.size() && decay.size() == linear.size(),
                  "decay, constant and linear must have one length");
  STD_TORCH_CHECK(taps.has_value() == decay.empty(), "a kernel is either taps or modes");
  if (taps.has_value()) {
    STD_TORCH_CHECK(taps->is_cpu() && taps->is_contiguous() && taps->dim() == 1 && taps->numel() > 0 &&
                        taps->scalar_type() == compute_dtype(like),
                    "taps must be a contiguous 1-d CPU tensor of the compute dtype with at least one element");
  }
  CausalKernel kernel{taps, {}, taps.has_value() ? std::min(taps->numel(), layout.time) : 0};
  for (std::size_t i = 0; i < decay.size(); ++i) kernel.modes.push_back({decay[i], constant[i], linear[i]});
  return kernel;
}

template <class Storage>
class KernelState {
 public:
  using Real = compute_t<Storage>;

  KernelState(const CausalKernel& kernel, std::int64_t width)
      : kernel_(kernel),
        kernels_(row_kernels<Storage>()),
        taps_(kernel.taps.has_value() ? elements<Real>(*kernel.taps) : nullptr),
        history_(taps_ != nullptr ? kernel.length : 2 * static_cast<std::int64_t>(kernel.modes.size()), width),
        response_(1, width) {}

  void reset(std::int64_t width) {
    width_ = width;
    pushed_ = 0;
    history_.clear();
    response_.clear();
  }

  // The response after the last push; zeros before the first.
  const Real* response() const { return response_[0]; }

  void push(const Real* row) {
    Real* response = response_[0];
    std::fill_n(response, width_, Real(0));
    if (taps_ != nullptr) {
      std::copy_n(row, width_, history_[pushed_ % kernel_.length]);
      const std::int64_t known = std::min(kernel_.length, pushed_ + 1);
      for (std::int64_t k = 0; k < known; ++k) {
        kernels_.add_scaled(width_, taps_[k], history_[(pushed_ - k) % kernel_.length], response);
      }
    } else {
      std::int64_t slot = 0;
      for (const Mode& mode : kernel_.modes) {
        kernels_.mode_step(width_, mode, row, history_[slot], history_[slot + 1], response);
        slot += 2;
      }
    }
    ++pushed_;
  }

 private:
  const CausalKernel& kernel_;
  const RowKernels<Storage>& kernels_;
  const Real* taps_;
  RowBuffer<Real> history_;  // taps: the last rows, in a ring; modes: p and q of each
  RowBuffer<Real> response_;
  std::int64_t width_ = 0;
  std::int64_t pushed_ = 0;
};

}  // namespace exodus::cpu
