// Floating-point formats that C++ lacks, and conversions as PTX makes them (9.7.9.21 cvt). Without branches, so that
// loops over lanes are vectorised.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "registers.h"

namespace ptx {

constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;  // of a float's bits
constexpr uint16_t kCanonicalNan16 = 0x7fff;                         // of half and bfloat16 alike
constexpr uint32_t kCanonicalNan = 0x7fffffff;

// To nearest, ties to even.
inline uint16_t half_of(float x) {
  const uint32_t bits = bits_as<uint32_t>(x), magnitude = bits & kMagnitude;
  // Adding 1/2, whose last place is 2^-24, rounds to multiples of the smallest half.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<uint32_t>(0.5f);
  const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  uint32_t half = magnitude < 113u << 23 ? subnormal : normal;
  half = magnitude >= bits_as<uint32_t>(65520.f) ? 0x7c00 : half;
  half = magnitude > kInfinity ? kCanonicalNan16 : half | (bits >> 16 & 0x8000);
  return static_cast<uint16_t>(half);
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t{half} << 16 & 0x80000000, magnitude = half & 0x7fffu;
  // The bits are those of a float 2^112 too small, subnormal ones included.
  const uint32_t finite = bits_as<uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112f);
  return bits_as<float>(sign | (magnitude >= 0x7c00 ? magnitude << 13 | kInfinity : finite));
}

// To nearest, ties to even.
inline uint16_t bfloat16_of(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & kMagnitude) > kInfinity ? kCanonicalNan16 : rounded);
}

inline float float_of_bfloat16(uint16_t value) { return bits_as<float>(uint32_t{value} << 16); }

// To nearest, ties away from zero; the lowest 13 bits are 0.
inline uint32_t tf32_of(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  return (bits & kMagnitude) > kInfinity ? kCanonicalNan : (bits + 0x1000) & ~0x1fffu;
}

// Of what any register holds: the lowest bits do not count.
inline float float_of_tf32(uint32_t value) { return bits_as<float>(value & ~0x1fffu); }

// .ftz
inline float flushed(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.f, x) : x; }

}  // namespace ptx
