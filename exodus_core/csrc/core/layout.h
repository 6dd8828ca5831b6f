// Layout of a tensor as (outer, time, inner), whichever of its axes time is. A lane is one (outer, inner) pair.
#pragma once

#include <cstdint>

#include "macros.h"

namespace exodus {

struct Layout {
  std::int64_t outer;
  std::int64_t time;
  std::int64_t inner;

  EXODUS_HOST_DEVICE std::int64_t lanes() const { return outer * inner; }

  // Element (b, t, n) lies at (b time + t) inner + n, in 64 bits.
  EXODUS_HOST_DEVICE std::int64_t offset(std::int64_t lane, std::int64_t t) const {
    return (lane / inner * time + t) * inner + lane % inner;
  }
};

}  // namespace exodus
