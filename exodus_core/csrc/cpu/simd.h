// Several neurons in one vector register. The arithmetic of csrc/core runs on Vec as it does on one number, and gives
// each lane the bits that one number would get. EXODUS_VECTOR_BYTES is the width of a register.
//
// Built on the vector extensions of GCC and Clang, so it compiles for any processor; the width comes from the file that
// is compiled for an instruction set. Only what the extensions lack is spelled out for x86: multiply_add, at_least,
// to_bits, non-temporal stores and the conversions of float16.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/macros.h"
#include "../core/dtypes.h"
#include "../core/scalar_math.h"
#include "../core/surrogate.h"

namespace exodus::cpu {

template <class Scalar, std::size_t bytes>
struct VectorOf {
  using type [[gnu::vector_size(bytes)]] = Scalar;
};
template <class Scalar, std::size_t bytes>
using vector_t = typename VectorOf<Scalar, bytes>::type;

template <class Scalar, int count>
struct Vec {
  using Lane = Scalar;
  using Vector = vector_t<Scalar, count * sizeof(Scalar)>;
  // The result of a comparison: all bits of a lane, or none.
  struct Mask {
    using Signed = std::conditional_t<sizeof(Scalar) == 8, std::int64_t, std::int32_t>;
    using Vector = vector_t<Signed, count * sizeof(Scalar)>;
    Vector lanes;
  };

  Vector lanes;

  Vec() = default;
  EXODUS_HOST_DEVICE Vec(Vector vector) : lanes(vector) {}
  // The same number in every lane. It is subtracted from since -0 + 0 is not -0.
  EXODUS_HOST_DEVICE Vec(Scalar number) : lanes(number - Vector{}) {}

  EXODUS_HOST_DEVICE static Vec read(const Scalar* from) {
    Vec read;
    std::memcpy(&read.lanes, from, sizeof(Vector));
    return read;
  }
  EXODUS_HOST_DEVICE void write(Scalar* to) const { std::memcpy(to, &lanes, sizeof(Vector)); }

  EXODUS_HOST_DEVICE friend Vec operator+(Vec a, Vec b) { return a.lanes + b.lanes; }
  EXODUS_HOST_DEVICE friend Vec operator-(Vec a, Vec b) { return a.lanes - b.lanes; }
  EXODUS_HOST_DEVICE friend Vec operator*(Vec a, Vec b) { return a.lanes * b.lanes; }
  EXODUS_HOST_DEVICE friend Vec operator/(Vec a, Vec b) { return a.lanes / b.lanes; }
  EXODUS_HOST_DEVICE friend Vec operator-(Vec a) { return -a.lanes; }
  EXODUS_HOST_DEVICE friend Vec operator<<(Vec a, int bits) { return a.lanes << bits; }
  EXODUS_HOST_DEVICE Vec& operator+=(Vec b) { return *this = *this + b; }
  EXODUS_HOST_DEVICE Vec& operator-=(Vec b) { return *this = *this - b; }

  EXODUS_HOST_DEVICE friend Mask operator<(Vec a, Vec b) { return {a.lanes < b.lanes}; }
  EXODUS_HOST_DEVICE friend Mask operator>(Vec a, Vec b) { return {a.lanes > b.lanes}; }
  EXODUS_HOST_DEVICE friend Mask operator<=(Vec a, Vec b) { return {a.lanes <= b.lanes}; }
  EXODUS_HOST_DEVICE friend Mask operator>=(Vec a, Vec b) { return {a.lanes >= b.lanes}; }
  EXODUS_HOST_DEVICE friend Mask operator!=(Vec a, Vec b) { return {a.lanes != b.lanes}; }
  EXODUS_HOST_DEVICE friend Vec select(Mask mask, Vec a, Vec b) { return mask.lanes ? a.lanes : b.lanes; }

  // Bit i is lane i of the mask.
  EXODUS_HOST_DEVICE friend std::uint32_t to_bits(Mask mask) {
#if EXODUS_VECTOR_BYTES >= 64
    if constexpr (std::is_same_v<Scalar, float>) {
      return _mm512_movepi32_mask(__m512i(mask.lanes));
    } else {
      return _mm512_movepi64_mask(__m512i(mask.lanes));
    }
#elif EXODUS_VECTOR_BYTES >= 32
    if constexpr (std::is_same_v<Scalar, float>) {
      return static_cast<std::uint32_t>(_mm256_movemask_ps(__m256(mask.lanes)));
    } else {
      return static_cast<std::uint32_t>(_mm256_movemask_pd(__m256d(mask.lanes)));
    }
#else
    std::uint32_t bits = 0;
    for (int i = 0; i < count; ++i) bits |= static_cast<std::uint32_t>(mask.lanes[i] & 1) << i;
    return bits;
#endif
  }

  EXODUS_HOST_DEVICE friend Vec multiply_add(Vec a, Vec b, Vec c) {
#if EXODUS_VECTOR_BYTES >= 64
    if constexpr (std::is_same_v<Scalar, float>) {
      return Vector(_mm512_fmadd_ps(__m512(a.lanes), __m512(b.lanes), __m512(c.lanes)));
    } else {
      return Vector(_mm512_fmadd_pd(__m512d(a.lanes), __m512d(b.lanes), __m512d(c.lanes)));
    }
#elif EXODUS_VECTOR_BYTES >= 32
    if constexpr (std::is_same_v<Scalar, float>) {
      return Vector(_mm256_fmadd_ps(__m256(a.lanes), __m256(b.lanes), __m256(c.lanes)));
    } else {
      return Vector(_mm256_fmadd_pd(__m256d(a.lanes), __m256d(b.lanes), __m256d(c.lanes)));
    }
#else
    for (int i = 0; i < count; ++i) a.lanes[i] = std::fma(a.lanes[i], b.lanes[i], c.lanes[i]);
    return a;
#endif
  }
  // The instruction gives its second operand where one is NaN. GCC takes the forms without a mask for uninitialised.
  EXODUS_HOST_DEVICE friend Vec at_least(Vec a, Vec bound) {
#if EXODUS_VECTOR_BYTES >= 64
    if constexpr (std::is_same_v<Scalar, float>) {
      return Vector(_mm512_maskz_max_ps(0xffff, __m512(bound.lanes), __m512(a.lanes)));
    } else {
      return Vector(_mm512_maskz_max_pd(0xff, __m512d(bound.lanes), __m512d(a.lanes)));
    }
#elif EXODUS_VECTOR_BYTES >= 32
    if constexpr (std::is_same_v<Scalar, float>) {
      return Vector(_mm256_max_ps(__m256(bound.lanes), __m256(a.lanes)));
    } else {
      return Vector(_mm256_max_pd(__m256d(bound.lanes), __m256d(a.lanes)));
    }
#else
    return select(a < bound, bound, a);
#endif
  }

  EXODUS_HOST_DEVICE friend Vec magnitude(Vec a) {
    using Signed = typename Mask::Signed;
    return Vector(typename Mask::Vector(a.lanes) & (Signed(-1) ^ (Signed(1) << (8 * sizeof(Scalar) - 1))));
  }
  EXODUS_HOST_DEVICE friend Vec floor(Vec a) {
    for (int i = 0; i < count; ++i) a.lanes[i] = std::floor(a.lanes[i]);
    return a;
  }
  EXODUS_HOST_DEVICE friend Vec exp_nonpositive(Vec a) {
    if constexpr (std::is_same_v<Scalar, float>) {
      return exp_nonpositive_float(a);
    } else {
      return exp_nonpositive_double(a);
    }
  }
};

// Elements as they lie in memory, to and from the type that they are computed in.
template <class Real, class Storage>
EXODUS_HOST_DEVICE Real load_lanes(const Storage* from) {
  if constexpr (std::is_same_v<Storage, BFloat16>) {
    constexpr int count = sizeof(Real) / sizeof(float);
    using Long = vector_t<std::uint32_t, 4 * count>;
    vector_t<std::uint16_t, 2 * count> stored;
    std::memcpy(&stored, from, sizeof stored);
    return Real(typename Real::Vector(__builtin_convertvector(stored, Long) << 16));
  } else if constexpr (std::is_same_v<Storage, Half>) {
#if EXODUS_VECTOR_BYTES >= 64
    return Real(typename Real::Vector(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))));
#elif EXODUS_VECTOR_BYTES >= 32
    return Real(typename Real::Vector(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
#else
    Real loaded;
    for (std::size_t i = 0; i < sizeof(Real) / sizeof(float); ++i) loaded.lanes[i] = load(from[i]);
    return loaded;
#endif
  } else {
    return Real::read(from);
  }
}

template <class Storage, class Real>
EXODUS_HOST_DEVICE void store_lanes(Storage* to, Real values) {
  if constexpr (std::is_same_v<Storage, compute_t<Storage>>) {
    values.write(to);
  } else {
#if EXODUS_VECTOR_BYTES >= 64
    if constexpr (std::is_same_v<Storage, Half>) {
      const __m256i stored = _mm512_maskz_cvtps_ph(0xffff, __m512(values.lanes), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), stored);
      return;
    }
#elif EXODUS_VECTOR_BYTES >= 32
    if constexpr (std::is_same_v<Storage, Half>) {
      const __m128i stored = _mm256_cvtps_ph(__m256(values.lanes), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), stored);
      return;
    }
#endif
    if constexpr (std::is_same_v<Storage, BFloat16>) {
      constexpr int count = sizeof(Real) / sizeof(float);
      using Long = vector_t<std::uint32_t, 4 * count>;
      const Long bits = Long(values.lanes);
      const Long rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
      const Long kept = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : rounded;  // NaN stays NaN
      using Short = vector_t<std::uint16_t, 2 * count>;
      const Short stored = __builtin_convertvector(kept >> 16, Short);
      std::memcpy(to, &stored, sizeof stored);
      return;
    }
    for (std::size_t i = 0; i < sizeof(Real) / sizeof(float); ++i) to[i] = store<Storage>(float(values.lanes[i]));
  }
}

// Numbers of any precision as a vector of doubles, and back.
template <class Doubles, class Real>
EXODUS_HOST_DEVICE Doubles widen(const Real* from) {
  constexpr std::size_t count = sizeof(Doubles) / sizeof(double);
  vector_t<Real, count * sizeof(Real)> numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return Doubles(__builtin_convertvector(numbers, typename Doubles::Vector));
}

template <class Real, class Doubles>
EXODUS_HOST_DEVICE void narrow(Real* to, Doubles values) {
  constexpr std::size_t count = sizeof(Doubles) / sizeof(double);
  using Numbers = vector_t<Real, count * sizeof(Real)>;
  const Numbers numbers = __builtin_convertvector(values.lanes, Numbers);
  std::memcpy(to, &numbers, sizeof numbers);
}

// A value after one round trip through memory.
template <class Storage, class Scalar, int count>
EXODUS_HOST_DEVICE Vec<Scalar, count> as_stored(Vec<Scalar, count> values) {
  if constexpr (std::is_same_v<Storage, Scalar>) {
    return values;
  } else {
    Storage stored[count];
    store_lanes(stored, values);
    return load_lanes<Vec<Scalar, count>>(stored);
  }
}

// Store of a full vector, at an address that is a multiple of its size: non-temporal if it is a whole cache line, which is
// not read first then. Parts of a line would have to meet in one of few buffers (docs/design-notes.md has the times).
template <class Storage, class Real>
EXODUS_HOST_DEVICE void stream_lanes(Storage* to, Real values) {
#if EXODUS_VECTOR_BYTES >= 64
  if constexpr (std::is_same_v<Storage, compute_t<Storage>>) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), __m512i(values.lanes));
    return;
  }
#endif
  store_lanes(to, values);
}

// Orders non-temporal stores before later ones: called before another thread may read them.
EXODUS_HOST_DEVICE void finish_streams() {
#if EXODUS_VECTOR_BYTES >= 64
  _mm_sfence();
#endif
}

}  // namespace exodus::cpu

namespace exodus {

template <class Scalar, int count>
struct Bits<cpu::Vec<Scalar, count>> {
  using type = cpu::Vec<bits_t<Scalar>, count>;
};

template <class Scalar, int count>
struct SmallestNormal<cpu::Vec<Scalar, count>> : SmallestNormal<Scalar> {};

}  // namespace exodus
