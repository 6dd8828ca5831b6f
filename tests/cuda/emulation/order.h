// The order in which blocks, and between two barriers threads, take their turn. CUDA promises none, so a kernel must
// give the same result in each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "failure.h"

namespace exodus::emulation {

// EXODUS_EMULATE_ORDER: forward (the default), reverse, or a number that seeds a shuffle.
struct OrderSetting {
  enum class Kind { forward, reverse, shuffled } kind = Kind::forward;
  std::uint32_t seed = 0;

  static OrderSetting from_environment() {
    const char* const asked = std::getenv("EXODUS_EMULATE_ORDER");
    const std::string text = asked == nullptr ? "forward" : asked;
    if (text == "forward") {
      return {};
    }
    if (text == "reverse") {
      return {Kind::reverse, 0};
    }
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) {
      fail("EXODUS_EMULATE_ORDER must be forward, reverse or a number below 10^9, got '" + text + "'");
    }
    return {Kind::shuffled, static_cast<std::uint32_t>(std::stoul(text))};
  }
};

// A permutation of 0 ... count - 1. A shuffle starts from the seed at each launch, so that a failure can be repeated.
class Order {
 public:
  Order(OrderSetting setting, std::uint64_t count, std::uint32_t salt)
      : setting_(setting), random_(setting.seed + salt), places_(count) {
    std::iota(places_.begin(), places_.end(), std::uint64_t{0});
    if (setting_.kind == OrderSetting::Kind::reverse) {
      std::reverse(places_.begin(), places_.end());
    }
  }

  // The next permutation: the same one each time, or a new shuffle.
  const std::vector<std::uint64_t>& next() {
    if (setting_.kind == OrderSetting::Kind::shuffled) {
      std::shuffle(places_.begin(), places_.end(), random_);
    }
    return places_;
  }

 private:
  OrderSetting setting_;
  std::mt19937 random_;
  std::vector<std::uint64_t> places_;
};

}  // namespace exodus::emulation
