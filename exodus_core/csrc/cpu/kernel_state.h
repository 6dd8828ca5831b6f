// The response of a causal kernel to a sequence of rows: response[t] = sum over k of kernel[k] pushed[t - k].
//
// One state serves the filter, the reset of an SRM neuron forward, and the same reset backward in time, where the rows
// are pushed from the last step to the first. Taps (FIR) cost one pass over a row per tap; a mode, an exponential or an
// alpha function, costs one pass whatever its length.
#pragma once

#include <algorithm>

#include "backend.h"

namespace exodus::cpu {

// Lanes of a tile such that the history of the kernel stays in the second-level cache.
inline std::int64_t max_width(const CausalKernel& kernel, std::int64_t element_size) {
  constexpr std::int64_t kHistoryBytes = 512 * 1024, kMaxLanes = 1024;
  return std::min(kMaxLanes, kHistoryBytes / (element_size * std::max<std::int64_t>(1, kernel.length)));
}

template <class Storage>
class KernelState {
 public:
  using Real = compute_t<Storage>;

  KernelState(const CausalKernel& kernel, std::int64_t width)
      : kernel_(kernel),
        kernels_(row_kernels<Storage>()),
        taps_(elements<Real>(kernel.taps)),
        history_(taps_ != nullptr ? kernel.length : 0, width),
        state_(2 * static_cast<std::int64_t>(kernel.modes.size()), width),
        response_(1, width) {}

  void reset(std::int64_t width) {
    width_ = width;
    pushed_ = 0;
    history_.clear();
    state_.clear();
    response_.clear();
  }

  // The response after the last push; zeros before the first.
  const Real* response() const { return response_[0]; }

  void push(const Real* row) { push(row, response_[0]); }

  // The same with the response in a row of the caller. Both have room for whole vectors. The oldest input is added first,
  // as in the plain loop.
  void push(const Real* row, Real* response) {
    if (taps_ != nullptr) {
      std::fill_n(response, width_, Real(0));
      std::copy_n(row, width_, history_[pushed_ % kernel_.length]);
      for (std::int64_t k = std::min(kernel_.length, pushed_ + 1) - 1; k >= 0; --k) {
        kernels_.add_tap(width_, taps_[k], history_[(pushed_ - k) % kernel_.length], response);
      }
    } else {
      kernels_.push_modes({width_, kernel_.modes.data(), static_cast<std::int64_t>(kernel_.modes.size()), row, state_[0],
                           state_.stride(), pushed_ % kFadeSteps == 0, response});
    }
    ++pushed_;
  }

 private:
  const CausalKernel& kernel_;
  const RowKernels<Storage>& kernels_;
  const Real* taps_;
  RowBuffer<Real> history_;  // taps: the last rows, in a ring
  RowBuffer<double> state_;  // modes: p and q of each
  RowBuffer<Real> response_;
  std::int64_t width_ = 0;
  std::int64_t pushed_ = 0;
};

}  // namespace exodus::cpu
