// A number that counts what is done with it. A kernel that is a template of its element type, launched with Counted in
// place of float, gives its operations per neuron and step.
//
// A multiplication and an addition count as two, whether or not a GPU fuses them; a change of sign is free there and
// not counted; an exponential is one, whatever it is computed with. Arithmetic on integers and addresses is not seen.
#pragma once

#include <cmath>
#include <type_traits>

#include "counters.h"

namespace exodus::emulation {

class Counted {
 public:
  Counted() = default;
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
  constexpr Counted(Number value) : value_(static_cast<float>(value)) {}

  explicit operator float() const { return value_; }
  explicit operator double() const { return value_; }

  friend Counted operator+(Counted a, Counted b) { return count(this_launch.additions), a.value_ + b.value_; }
  friend Counted operator-(Counted a, Counted b) { return count(this_launch.additions), a.value_ - b.value_; }
  friend Counted operator*(Counted a, Counted b) { return count(this_launch.multiplications), a.value_ * b.value_; }
  friend Counted operator/(Counted a, Counted b) { return count(this_launch.divisions), a.value_ / b.value_; }
  friend Counted operator-(Counted a) { return -a.value_; }
  Counted& operator+=(Counted b) { return *this = *this + b; }
  Counted& operator-=(Counted b) { return *this = *this - b; }
  Counted& operator*=(Counted b) { return *this = *this * b; }

  friend bool operator<(Counted a, Counted b) { return count(this_launch.comparisons), a.value_ < b.value_; }
  friend bool operator>(Counted a, Counted b) { return count(this_launch.comparisons), a.value_ > b.value_; }
  friend bool operator<=(Counted a, Counted b) { return count(this_launch.comparisons), a.value_ <= b.value_; }
  friend bool operator>=(Counted a, Counted b) { return count(this_launch.comparisons), a.value_ >= b.value_; }
  friend bool operator==(Counted a, Counted b) { return count(this_launch.comparisons), a.value_ == b.value_; }
  friend bool operator!=(Counted a, Counted b) { return count(this_launch.comparisons), a.value_ != b.value_; }

  // Operations of csrc/core on floats, chosen by the type of the argument.
  friend Counted load(Counted stored) { return stored; }
  friend Counted floor(Counted x) { return std::floor(x.value_); }
  friend Counted fabs(Counted x) { return std::fabs(x.value_); }
  friend Counted exp_nonpositive(Counted x) { return count(this_launch.exponentials), std::exp(x.value_); }

 private:
  static void count(std::int64_t& operations) { operations += 1; }

  float value_;
};

static_assert(std::is_trivially_copyable_v<Counted> && sizeof(Counted) == sizeof(float), "lies in memory as a float");

}  // namespace exodus::emulation
