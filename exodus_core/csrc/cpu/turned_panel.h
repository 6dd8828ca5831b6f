// A panel of outputs in the layout that the kernels of convolutions read and write.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "backend.h"

namespace exodus::cpu {

// A panel of a tensor (..., outputs, rows, columns): its outputs at one place lie next to each other, those of the next
// place behind them, with `margin` places of zeros before, between and behind the rows.
template <class Storage>
class TurnedPanel {
 public:
  using Real = compute_t<Storage>;

  TurnedPanel(std::int64_t lanes, std::int64_t rows, std::int64_t columns, std::int64_t margin)
      : lanes_(lanes),
        rows_(rows),
        columns_(columns),
        margin_(margin),
        spread_(1, (margin + rows * (columns + margin)) * lanes),
        close_(1, margin == 0 ? 0 : rows * columns * lanes),
        stored_(1, kInPlace ? 0 : rows * columns * lanes) {}

  void read(const Storage* from, std::int64_t width, std::int64_t stride) {
    const RowKernels<Storage>& kernels = row_kernels<Storage>();
    Real* const close = margin_ == 0 ? spread_[0] : close_[0];
    if constexpr (kInPlace) {
      kernels.to_rows(width, rows_ * columns_, from, stride, close, lanes_);
    } else {
      kernels.to_rows(width, rows_ * columns_, from, stride, stored_[0], lanes_);
      kernels.load(rows_ * columns_ * lanes_, stored_[0], close);
    }
    if (margin_ == 0) return;
    for (std::int64_t r = 0; r < rows_; ++r) std::copy_n(close + r * columns_ * lanes_, columns_ * lanes_, row(r));
  }

  void write(Storage* to, std::int64_t width, std::int64_t stride) {
    const RowKernels<Storage>& kernels = row_kernels<Storage>();
    Real* const close = margin_ == 0 ? spread_[0] : close_[0];
    if (margin_ > 0) {
      for (std::int64_t r = 0; r < rows_; ++r) std::copy_n(row(r), columns_ * lanes_, close + r * columns_ * lanes_);
    }
    if constexpr (kInPlace) {
      kernels.from_rows(width, rows_ * columns_, close, lanes_, to, stride);
    } else {
      kernels.store(rows_ * columns_ * lanes_, close, stored_[0]);
      kernels.from_rows(width, rows_ * columns_, stored_[0], lanes_, to, stride);
    }
  }

  // Writes these outputs to every place, also of the margins.
  void fill(const Real* outputs) {
    Real* const to = elements();
    std::copy_n(outputs, lanes_, to);
    for (std::int64_t done = lanes_; done < size(); done *= 2) std::copy_n(to, std::min(done, size() - done), to + done);
  }

  Real* elements() const { return spread_[0]; }
  std::int64_t size() const { return spread_.stride(); }

 private:
  static constexpr bool kInPlace = std::is_same_v<Storage, Real>;

  Real* row(std::int64_t r) const { return spread_[0] + (margin_ + r * (columns_ + margin_)) * lanes_; }

  std::int64_t lanes_;
  std::int64_t rows_;
  std::int64_t columns_;
  std::int64_t margin_;
  RowBuffer<Real> spread_;
  RowBuffer<Real> close_;
  RowBuffer<Storage> stored_;
};

}  // namespace exodus::cpu
