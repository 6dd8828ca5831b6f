// Element types as they lie in memory, and the type that their arithmetic is done in.
//
// float16 and bfloat16 are stored as 16 bits and computed in float; the conversions round to nearest even,
// keep infinities and NaN, and have no branches, so that loops over them vectorise. A GPU has instructions for them, which
// give the same bits, but a NaN of their own.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace exodus {

// Enumerations, not structs: a compiler vectorises loads and stores of scalars only.
enum class Half : std::uint16_t {};
enum class BFloat16 : std::uint16_t {};

template <class Storage>
struct ComputeType {
  using type = Storage;
};
template <>
struct ComputeType<Half> {
  using type = float;
};
template <>
struct ComputeType<BFloat16> {
  using type = float;
};
template <class Storage>
using compute_t = typename ComputeType<Storage>::type;

template <class To, class From>
EXODUS_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

EXODUS_HOST_DEVICE double load(double stored) { return stored; }
EXODUS_HOST_DEVICE float load(float stored) { return stored; }

EXODUS_HOST_DEVICE float load(BFloat16 stored) {
  return bit_cast<float>(static_cast<std::uint32_t>(stored) << 16);
}

EXODUS_HOST_DEVICE float load(Half stored) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<std::uint16_t>(stored)));
  return value;
#else
  const std::uint32_t sign = (static_cast<std::uint32_t>(stored) & 0x8000u) << 16;
  const std::uint32_t magnitude = (static_cast<std::uint32_t>(stored) & 0x7fffu) << 13;
  // Adding 112 to the exponent moves its bias from 15 to 127. A subnormal has no leading one: with that of 2^-14 instead,
  // and 2^-14 subtracted again, no number on the way is a subnormal float, which the caller may have switched off.
  const std::uint32_t normal = magnitude + 0x38000000u;
  const std::uint32_t subnormal = bit_cast<std::uint32_t>(bit_cast<float>(magnitude + 0x38800000u) - bit_cast<float>(0x38800000u));
  const std::uint32_t finite = magnitude < 0x00800000u ? subnormal : normal;
  const std::uint32_t infinite_or_nan = magnitude | 0x7f800000u;
  return bit_cast<float>(sign | (magnitude >= 0x0f800000u ? infinite_or_nan : finite));
#endif
}

template <class Storage>
EXODUS_HOST_DEVICE Storage store(compute_t<Storage> value) {
  return value;
}

template <>
EXODUS_HOST_DEVICE BFloat16 store<BFloat16>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  std::uint16_t stored;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored) : "f"(value));
  return static_cast<BFloat16>(stored);
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const std::uint32_t quiet_nan = bits | 0x00400000u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<BFloat16>((is_nan ? quiet_nan : rounded) >> 16);
#endif
}

template <>
EXODUS_HOST_DEVICE Half store<Half>(float value) {
#if defined(__CUDA_ARCH__)
  std::uint16_t stored;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored) : "f"(value));
  return static_cast<Half>(stored);
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: rebias the exponent and round away the 13 bits that do not fit.
  const std::uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 lets the float adder round to a multiple of 2^-24.
  const std::uint32_t subnormal =
      bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<std::uint32_t>(0.5f);
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const std::uint32_t overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<Half>(sign | (magnitude >= 0x477ff000u ? overflow : finite));
#endif
}

// A value after one round trip through memory. The spike decision is taken on it, so that the backward
// pass, which has only the stored membrane, sees the same spikes.
template <class Storage>
EXODUS_HOST_DEVICE compute_t<Storage> as_stored(compute_t<Storage> value) {
  return load(store<Storage>(value));
}

}  // namespace exodus
