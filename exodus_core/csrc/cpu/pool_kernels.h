// The kernels of pooling, compiled for each instruction set: the largest value or the mean of each window of a plane, and
// their gradients.
//
// Windows of two by two places side by side are computed from pairs of rows as they lie in memory; all others from rows
// that are taken apart into phases, a vector of neighbouring windows at a time. A window is read in the order of its rows,
// and a gradient summed in the order of the windows, as torch does: float32 and float64 have its bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME {
namespace {

// Numbers of places in a window, as wide as the lanes of a vector.
template <class Real>
using PlacesOf = typename Real::Mask::Vector;

template <class Real>
using PlaceBytes = vector_t<std::uint8_t, sizeof(Real) / sizeof(typename Real::Lane)>;

template <class Real>
EXODUS_HOST_DEVICE PlacesOf<Real> read_places(const std::uint8_t* from) {
  PlaceBytes<Real> bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, PlacesOf<Real>);
}

template <class Real>
EXODUS_HOST_DEVICE void write_places(std::uint8_t* to, PlacesOf<Real> places) {
  const PlaceBytes<Real> bytes = __builtin_convertvector(places, PlaceBytes<Real>);
  std::memcpy(to, &bytes, sizeof bytes);
}

// The largest value of windows, the first of equal ones; NaN is larger than all.
template <bool with_places, class Real>
struct Largest {
  Real value;
  PlacesOf<Real> place;

  EXODUS_HOST_DEVICE void see(Real other, std::int64_t at) {
    const typename Real::Mask larger{(other > value).lanes | (other != other).lanes};
    value = select(larger, other, value);
    if constexpr (with_places) {
      place = larger.lanes ? PlacesOf<Real>{} + static_cast<typename Real::Mask::Signed>(at) : place;
    }
  }
};

template <class Real>
struct Pairs {
  Real even;
  Real odd;
};

// The elements of even and of odd number of two vectors, and back. Of a row that is short the second vector is not
// needed: it is not read, and not written.
template <class Storage, class Real = VecOf<Storage>>
EXODUS_HOST_DEVICE Pairs<Real> read_pairs(const Storage* from, bool is_short = false) {
  constexpr int n = kVecLanes<Storage>;
  PlacesOf<Real> even, odd;
  for (int i = 0; i < n; ++i) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  const Real first = load_lanes<Real>(from), second = is_short ? first : load_lanes<Real>(from + n);
  return {__builtin_shuffle(first.lanes, second.lanes, even), __builtin_shuffle(first.lanes, second.lanes, odd)};
}

template <class Storage, class Real = VecOf<Storage>>
EXODUS_HOST_DEVICE void write_pairs(Storage* to, Real even, Real odd, bool is_short = false) {
  constexpr int n = kVecLanes<Storage>;
  PlacesOf<Real> first, second;
  for (int i = 0; i < n; ++i) {
    first[i] = i / 2 + i % 2 * n;
    second[i] = n / 2 + i / 2 + i % 2 * n;
  }
  store_lanes(to, Real(__builtin_shuffle(even.lanes, odd.lanes, first)));
  if (!is_short) store_lanes(to + n, Real(__builtin_shuffle(even.lanes, odd.lanes, second)));
}

template <class T>
EXODUS_HOST_DEVICE void copy(std::int64_t count, const T* from, T* to) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

template <class T>
EXODUS_HOST_DEVICE void fill(std::int64_t count, T value, T* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = value;
}

// Calls body(top, bottom, output, places) for vectors of outputs of windows that are pairs: it reads two vectors from the
// top and the bottom row, and writes one. Where a row has fewer outputs than a vector, those behind it are written too,
// and then by the next row; where there is no room for that, a copy of the row is computed.
template <bool with_places, class Storage, class Body>
EXODUS_HOST_DEVICE void for_each_pair(const PoolForward<Storage>& call, Body body) {
  constexpr std::int64_t n = kVecLanes<Storage>;
  const std::int64_t height = call.windows.y.size, width = call.windows.x.size;
  const std::int64_t rows = call.windows.y.outputs, outputs = call.windows.x.outputs;
  const Storage* input_end = call.input + (call.planes + call.more_planes) * height * width;
  Storage* output = call.output;
  std::uint8_t* places = call.places;
  Storage* output_end = output + call.planes * rows * outputs;
  for (std::int64_t plane = 0; plane < call.planes; ++plane) {
    const Storage* top = call.input + plane * height * width;
    for (std::int64_t row = 0; row < rows; ++row) {
      const Storage* bottom = top + width;
      if (outputs >= n) {
        for (std::int64_t next = 0; next < outputs; next += n) {
          const std::int64_t i = next < outputs - n ? next : outputs - n;
          body(top + 2 * i, bottom + 2 * i, output + i, with_places ? places + i : nullptr);
        }
      } else if (input_end - bottom >= 2 * n && output_end - output >= n) {
        body(top, bottom, output, places);
      } else {
        Storage copied[4 * n] = {}, found[n];
        std::uint8_t found_places[n];
        copy(2 * outputs, top, copied);
        copy(2 * outputs, bottom, copied + 2 * n);
        body(copied, copied + 2 * n, found, found_places);
        copy(outputs, found, output);
        if constexpr (with_places) copy(outputs, found_places, places);
      }
      top += 2 * width;
      output += outputs;
      if constexpr (with_places) places += outputs;
    }
  }
}

// Calls body(grad, places, top, bottom) likewise: it reads one vector, and writes two to each of the rows.
template <bool with_places, class Storage, class Body>
EXODUS_HOST_DEVICE void for_each_pair(const PoolBackward<Storage>& call, Body body) {
  constexpr std::int64_t n = kVecLanes<Storage>;
  const std::int64_t height = call.windows.y.size, width = call.windows.x.size;
  const std::int64_t rows = call.windows.y.outputs, outputs = call.windows.x.outputs;
  const Storage* grad = call.grad;
  const std::uint8_t* places = call.places;
  const Storage* grad_end = grad + (call.planes + call.more_planes) * rows * outputs;
  Storage* input_end = call.grad_input + call.planes * height * width;
  const Storage zero = store<Storage>(0);
  for (std::int64_t plane = 0; plane < call.planes; ++plane) {
    Storage* top = call.grad_input + plane * height * width;
    for (std::int64_t row = 0; row < rows; ++row) {
      Storage* bottom = top + width;
      if (outputs >= n) {
        for (std::int64_t next = 0; next < outputs; next += n) {
          const std::int64_t i = next < outputs - n ? next : outputs - n;
          body(grad + i, with_places ? places + i : nullptr, top + 2 * i, bottom + 2 * i);
        }
      } else if (grad_end - grad >= n && input_end - bottom >= 2 * n) {
        body(grad, places, top, bottom);
      } else {
        Storage copied[n] = {}, found[4 * n];
        std::uint8_t copied_places[n] = {};
        copy(outputs, grad, copied);
        if constexpr (with_places) copy(outputs, places, copied_places);
        body(copied, copied_places, found, found + 2 * n);
        copy(2 * outputs, found, top);
        copy(2 * outputs, found + 2 * n, bottom);
      }
      if (width % 2 != 0) top[width - 1] = bottom[width - 1] = zero;  // no window sees them
      top += 2 * width;
      grad += outputs;
      if constexpr (with_places) places += outputs;
    }
    if (height % 2 != 0) fill(width, zero, top);
  }
}

template <bool with_places, class Storage>
EXODUS_HOST_DEVICE void max_pool_pairs(const PoolForward<Storage>& call) {
  using Real = VecOf<Storage>;
  const bool is_short = 2 * call.windows.x.outputs <= kVecLanes<Storage>;
  for_each_pair<with_places>(call, [=](const Storage* top, const Storage* bottom, Storage* output, std::uint8_t* places) {
    const Pairs<Real> above = read_pairs(top, is_short), below = read_pairs(bottom, is_short);
    Largest<with_places, Real> largest{above.even, {}};
    largest.see(above.odd, 1);
    largest.see(below.even, 2);
    largest.see(below.odd, 3);
    store_lanes(output, largest.value);
    if constexpr (with_places) write_places<Real>(places, largest.place);
  });
}

template <class Storage>
EXODUS_HOST_DEVICE void max_pool_backward_pairs(const PoolBackward<Storage>& call) {
  using Real = VecOf<Storage>;
  const bool is_short = 2 * call.windows.x.outputs <= kVecLanes<Storage>;
  for_each_pair<true>(call, [=](const Storage* grad, const std::uint8_t* places, Storage* top, Storage* bottom) {
    const Real values = load_lanes<Real>(grad);
    const PlacesOf<Real> found = read_places<Real>(places);
    const auto at = [&](int place) { return select(typename Real::Mask{found == place}, values, Real(0)); };
    write_pairs(top, at(0), at(1), is_short);
    write_pairs(bottom, at(2), at(3), is_short);
  });
}

// Calls body(divided), where divided(v) is v / divisor: a product, where that has the same bits.
template <class Storage, class Body>
EXODUS_HOST_DEVICE void with_quotient(double divisor, Body body) {
  using Real = VecOf<Storage>;
  using Scalar = compute_t<Storage>;
  int exponent;
  if (std::frexp(divisor, &exponent) == 0.5 && exponent > -100 && exponent < 100) {
    const Real inverse(static_cast<Scalar>(1 / divisor));
    body([inverse](Real sum) { return sum * inverse; });
  } else {
    const Real number(static_cast<Scalar>(divisor));
    body([number](Real sum) { return sum / number; });
  }
}

template <class Storage>
EXODUS_HOST_DEVICE void avg_pool_pairs(const PoolForward<Storage>& call) {
  using Real = VecOf<Storage>;
  const bool is_short = 2 * call.windows.x.outputs <= kVecLanes<Storage>;
  with_quotient<Storage>(call.windows.divisor, [&](auto divided) {
    for_each_pair<false>(call, [&](const Storage* top, const Storage* bottom, Storage* output, std::uint8_t*) {
      const Pairs<Real> above = read_pairs(top, is_short), below = read_pairs(bottom, is_short);
      store_lanes(output, divided(above.even + above.odd + below.even + below.odd));
    });
  });
}

template <class Storage>
EXODUS_HOST_DEVICE void avg_pool_backward_pairs(const PoolBackward<Storage>& call) {
  using Real = VecOf<Storage>;
  const bool is_short = 2 * call.windows.x.outputs <= kVecLanes<Storage>;
  with_quotient<Storage>(call.windows.divisor, [&](auto divided) {
    for_each_pair<false>(call, [&](const Storage* grad, const std::uint8_t*, Storage* top, Storage* bottom) {
      const Real values = divided(load_lanes<Real>(grad));
      write_pairs(top, values, values, is_short);
      write_pairs(bottom, values, values, is_short);
    });
  });
}

// The phases of a row of places. Those beside the row stay as they are.
template <class Storage, class Scalar>
void take_apart(const PoolAxis& x, const PoolScratch<Scalar>& scratch, const Storage* row, Scalar* phases) {
  constexpr std::int64_t n = kVecLanes<Scalar>;
  Scalar* line = x.stride == 1 ? phases + x.padding : scratch.line;
  for (std::int64_t i = 0; i < x.size; ++i) line[i] = load(row[i]);
  if (x.stride == 1) return;
  if (x.stride == 2 && scratch.phases == 2) {
    Scalar* even = phases + x.padding % 2 * scratch.span + x.padding / 2;
    Scalar* odd = phases + (1 - x.padding % 2) * scratch.span + (x.padding + 1) / 2;
    for (std::int64_t i = 0; 2 * i < x.size; i += n) {
      const auto pairs = read_pairs(line + 2 * i);
      pairs.even.write(even + i);
      pairs.odd.write(odd + i);
    }
    return;
  }
  for (std::int64_t r = 0; r < scratch.phases; ++r) {
    std::int64_t i = r < x.padding ? (x.padding - r + x.stride - 1) / x.stride : 0;
    for (std::int64_t place = i * x.stride + r - x.padding; place < x.size; place += x.stride) {
      phases[r * scratch.span + i++] = line[place];
    }
  }
}

// A row of places from its phases.
template <class Storage, class Scalar>
void put_together(const PoolAxis& x, const PoolScratch<Scalar>& scratch, const Scalar* phases, Storage* row) {
  constexpr std::int64_t n = kVecLanes<Scalar>;
  const Scalar* line = x.stride == 1 ? phases + x.padding : scratch.line;
  if (x.stride == 2 && scratch.phases == 2) {
    const Scalar* even = phases + x.padding % 2 * scratch.span + x.padding / 2;
    const Scalar* odd = phases + (1 - x.padding % 2) * scratch.span + (x.padding + 1) / 2;
    for (std::int64_t i = 0; 2 * i < x.size; i += n) {
      write_pairs(scratch.line + 2 * i, VecOf<Scalar>::read(even + i), VecOf<Scalar>::read(odd + i));
    }
  } else if (x.stride > 1) {
    if (scratch.phases < x.stride) fill(x.size, Scalar(0), scratch.line);  // no window sees the other places
    for (std::int64_t r = 0; r < scratch.phases; ++r) {
      std::int64_t i = r < x.padding ? (x.padding - r + x.stride - 1) / x.stride : 0;
      for (std::int64_t place = i * x.stride + r - x.padding; place < x.size; place += x.stride) {
        scratch.line[place] = phases[r * scratch.span + i++];
      }
    }
  }
  for (std::int64_t i = 0; i < x.size; ++i) row[i] = store<Storage>(line[i]);
}

template <class Scalar>
EXODUS_HOST_DEVICE Scalar* row_of(const PoolScratch<Scalar>& scratch, std::int64_t y) {
  return scratch.rows + y % scratch.slots * scratch.phases * scratch.span;
}

// Calls body(tap, elements) for the taps of the windows in row `row`, with the elements that the windows from `window` on
// see there: forward in the order of a window's rows; backward in that of the windows that see an element.
template <bool forward, class Scalar, class Body>
EXODUS_HOST_DEVICE void for_each_tap(const PoolWindows& windows, const PoolScratch<Scalar>& scratch, std::int64_t row,
                                     std::int64_t window, Body body) {
  const std::int64_t taps = windows.x.taps, stride = windows.x.stride;
  for (std::int64_t y = windows.y.first_tap(row); y < windows.y.last_tap(row); ++y) {
    Scalar* elements = row_of(scratch, windows.y.first_place(row) + y) + window;
    std::int64_t phase = forward ? 0 : (taps - 1) % stride, offset = forward ? 0 : (taps - 1) / stride;
    for (std::int64_t i = 0; i < taps; ++i) {
      body(y * taps + (forward ? i : taps - 1 - i), elements + phase * scratch.span + offset);
      if (forward && ++phase == stride) phase = 0, ++offset;
      if (!forward && phase-- == 0) phase = stride - 1, --offset;
    }
  }
}

// The divisor of all windows, to the end of the last vector: what is behind the last window is divided too.
template <class Scalar>
EXODUS_HOST_DEVICE void fill_divisors(const PoolWindows& windows, Scalar* divisors) {
  constexpr std::int64_t n = kVecLanes<Scalar>;
  const double divisor = windows.divisor == 0 ? 1 : windows.divisor;
  fill((windows.x.outputs + n - 1) / n * n, static_cast<Scalar>(divisor), divisors);
}

// The divisors of the windows of a row, if these are the numbers of their places.
template <class Scalar>
EXODUS_HOST_DEVICE void count_places(const PoolWindows& windows, std::int64_t row, Scalar* divisors) {
  if (windows.divisor != 0) return;
  const std::int64_t rows = windows.y.last_tap(row) - windows.y.first_tap(row);
  for (std::int64_t i = 0; i < windows.x.outputs; ++i) {
    divisors[i] = static_cast<Scalar>(rows * (windows.x.last_tap(i) - windows.x.first_tap(i)));
  }
}

// Calls body(row) for each row of windows, when their rows of places are in the scratch; it leaves the outputs there.
template <class Storage, class Body, class Scalar = compute_t<Storage>>
EXODUS_HOST_DEVICE void for_each_row(const PoolForward<Storage>& call, Scalar outside, Body body) {
  const PoolAxis &y = call.windows.y, &x = call.windows.x;
  const PoolScratch<Scalar>& scratch = call.scratch;
  constexpr std::int64_t pair = 2 * kVecLanes<Storage>;
  fill(scratch.slots * scratch.phases * scratch.span, outside, scratch.rows);
  fill((x.size + pair - 1) / pair * pair, outside, scratch.line);
  fill_divisors(call.windows, scratch.divisors);
  Storage* output = call.output;
  std::uint8_t* places = call.places;
  for (std::int64_t plane = 0; plane < call.planes; ++plane) {
    const Storage* input = call.input + plane * y.size * x.size;
    std::int64_t ready = 0;
    for (std::int64_t row = 0; row < y.outputs; ++row) {
      const std::int64_t begin = y.first_place(row) + y.first_tap(row), end = y.first_place(row) + y.last_tap(row);
      if (ready < begin) ready = begin;
      for (; ready < end; ++ready) take_apart(x, scratch, input + ready * x.size, row_of(scratch, ready));
      body(row);
      for (std::int64_t i = 0; i < x.outputs; ++i) output[i] = store<Storage>(scratch.values[i]);
      output += x.outputs;
      if (places == nullptr) continue;
      copy(x.outputs, scratch.places, places);
      places += x.outputs;
    }
  }
}

// Calls body(row) for each row of windows, with their gradients in the scratch; it adds them to the rows of places there.
template <class Storage, class Body, class Scalar = compute_t<Storage>>
EXODUS_HOST_DEVICE void for_each_row(const PoolBackward<Storage>& call, Body body) {
  const PoolAxis &y = call.windows.y, &x = call.windows.x;
  const PoolScratch<Scalar>& scratch = call.scratch;
  fill(scratch.slots * scratch.phases * scratch.span, Scalar(0), scratch.rows);
  fill_divisors(call.windows, scratch.divisors);
  const Storage* grad = call.grad;
  for (std::int64_t plane = 0; plane < call.planes; ++plane) {
    Storage* grad_input = call.grad_input + plane * y.size * x.size;
    std::int64_t done = 0;
    const auto finish = [&](std::int64_t end) {
      for (; done < end; ++done) {
        put_together(x, scratch, row_of(scratch, done), grad_input + done * x.size);
        fill(scratch.phases * scratch.span, Scalar(0), row_of(scratch, done));
      }
    };
    for (std::int64_t row = 0; row < y.outputs; ++row) {
      finish(y.first_place(row));
      for (std::int64_t i = 0; i < x.outputs; ++i) scratch.values[i] = load(grad[i]);
      grad += x.outputs;
      body(row);
    }
    finish(y.size);
  }
}

template <bool with_places, class Storage>
EXODUS_HOST_DEVICE void max_pool_windows(const PoolForward<Storage>& call) {
  using Real = VecOf<Storage>;
  using Scalar = compute_t<Storage>;
  const PoolWindows& windows = call.windows;
  const PoolScratch<Scalar>& scratch = call.scratch;
  constexpr Scalar outside = -std::numeric_limits<Scalar>::infinity();
  for (std::int64_t i = 0; i < windows.x.outputs; ++i) {
    scratch.first_taps[i] = static_cast<std::uint8_t>(windows.x.first_tap(i));
  }
  for_each_row(call, outside, [&](std::int64_t row) {
    for (std::int64_t i = 0; i < windows.x.outputs; i += kVecLanes<Storage>) {
      // Where all values are -inf, it is the first that lies in the plane.
      const auto first = static_cast<typename Real::Mask::Signed>(windows.y.first_tap(row) * windows.x.taps);
      Largest<with_places, Real> largest{Real(outside), read_places<Real>(scratch.first_taps + i) + first};
      for_each_tap<true>(windows, scratch, row, i,
                         [&](std::int64_t tap, const Scalar* elements) { largest.see(Real::read(elements), tap); });
      largest.value.write(scratch.values + i);
      if constexpr (with_places) write_places<Real>(scratch.places + i, largest.place);
    }
  });
}

// One place of each window gets a gradient: it is added to that alone. Sums of half precision are those of float32.
template <class Storage>
EXODUS_HOST_DEVICE void max_pool_backward_windows(const PoolBackward<Storage>& call) {
  using Scalar = compute_t<Storage>;
  const PoolAxis &y = call.windows.y, &x = call.windows.x;
  std::int64_t offsets[256];  // of the places of a window
  for (std::int64_t tap = 0; tap < y.taps * x.taps; ++tap) offsets[tap] = tap / x.taps * x.size + tap % x.taps;
  const Storage* grad = call.grad;
  const std::uint8_t* places = call.places;
  for (std::int64_t plane = 0; plane < call.planes; ++plane) {
    Storage* grad_input = call.grad_input + plane * y.size * x.size;
    Scalar* sums = call.scratch.rows;
    if constexpr (std::is_same_v<Storage, Scalar>) sums = grad_input;
    fill(y.size * x.size, Scalar(0), sums);
    for (std::int64_t row = 0; row < y.outputs; ++row) {
      std::int64_t first = y.first_place(row) * x.size - x.padding;
      for (std::int64_t i = 0; i < x.outputs; ++i, first += x.stride) sums[first + offsets[*places++]] += load(*grad++);
    }
    if constexpr (!std::is_same_v<Storage, Scalar>) {
      for (std::int64_t i = 0; i < y.size * x.size; ++i) grad_input[i] = store<Storage>(sums[i]);
    }
  }
}

template <class Storage>
EXODUS_HOST_DEVICE void avg_pool_windows(const PoolForward<Storage>& call) {
  using Real = VecOf<Storage>;
  using Scalar = compute_t<Storage>;
  for_each_row(call, Scalar(0), [&](std::int64_t row) {
    count_places(call.windows, row, call.scratch.divisors);
    for (std::int64_t i = 0; i < call.windows.x.outputs; i += kVecLanes<Storage>) {
      Real sum(0);
      for_each_tap<true>(call.windows, call.scratch, row, i,
                         [&](std::int64_t, const Scalar* elements) { sum += Real::read(elements); });
      (sum / Real::read(call.scratch.divisors + i)).write(call.scratch.values + i);
    }
  });
}

template <class Storage>
EXODUS_HOST_DEVICE void avg_pool_backward_windows(const PoolBackward<Storage>& call) {
  using Real = VecOf<Storage>;
  using Scalar = compute_t<Storage>;
  for_each_row(call, [&](std::int64_t row) {
    count_places(call.windows, row, call.scratch.divisors);
    for (std::int64_t i = 0; i < call.windows.x.outputs; i += kVecLanes<Storage>) {
      const Real values = Real::read(call.scratch.values + i) / Real::read(call.scratch.divisors + i);
      for_each_tap<false>(call.windows, call.scratch, row, i, [&](std::int64_t, Scalar* elements) {
        (Real::read(elements) + values).write(elements);
      });
    }
  });
}

template <class Storage>
void max_pool(const PoolForward<Storage>& call) {
  const bool with_places = call.places != nullptr;
  if (call.windows.has_pairs()) {
    with_places ? max_pool_pairs<true>(call) : max_pool_pairs<false>(call);
  } else {
    with_places ? max_pool_windows<true>(call) : max_pool_windows<false>(call);
  }
}

template <class Storage>
void max_pool_backward(const PoolBackward<Storage>& call) {
  call.windows.has_pairs() ? max_pool_backward_pairs(call) : max_pool_backward_windows(call);
}

template <class Storage>
void avg_pool(const PoolForward<Storage>& call) {
  call.windows.has_pairs() ? avg_pool_pairs(call) : avg_pool_windows(call);
}

template <class Storage>
void avg_pool_backward(const PoolBackward<Storage>& call) {
  call.windows.has_pairs() ? avg_pool_backward_pairs(call) : avg_pool_backward_windows(call);
}

}  // namespace
}  // namespace exodus::cpu::EXODUS_INSTRUCTION_SET_NAME
