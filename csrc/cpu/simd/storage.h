// Loads and stores in every storage format.
#pragma once
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "core/formats.h"
#include "cpu/simd/functions.h"

namespace fused_rnn::cpu {
namespace {

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

inline uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }

#ifdef FUSED_RNN_NEON  // which has the conversions; subnormals stay what they are in flush-to-zero mode too
inline float load(Half x) {
  __fp16 half;
  memcpy(&half, &x, sizeof half);
  return half;
}
inline void store(Half& to, float x) {
  const __fp16 half = __fp16(x);
  memcpy(&to, &half, sizeof half);
}
#elif defined(FUSED_RNN_F16C)  // likewise
inline float load(Half x) { return _cvtsh_ss(x.bits); }
inline void store(Half& to, float x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  to.bits = uint16_t(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), kNearest)));
}
#else
inline float load(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
  // Subnormals by way of a normal number: a float subnormal would be lost in flush-to-zero mode.
  if (magnitude < 0x400u) return float_of(sign | bits_of(float_of(0x38800000u | magnitude << 13) - 0x1p-14f));
  return float_of(sign | ((magnitude + 0x1c000u) << 13));  // float's exponent is 112 greater
}

// Round to nearest, ties to even; NaN stays NaN.
inline void store(Half& to, float x) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and up round to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded value in the low mantissa bits.
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  to.bits = uint16_t(sign | half);
}
#endif

inline void store(float& to, float x) { to = x; }
inline void store(double& to, double x) { to = x; }

// Rounded alike.
inline void store(BFloat16& to, float x) {
  const uint32_t u = bits_of(x);
  to.bits = x != x ? 0x7fc0u : uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

// Vector loads and stores with conversion.
template <class T>
FUSED_RNN_INLINE Vec<T> load_vector(const T* from) {
  return load_lanes<Vec<T>>(from);
}
template <class T>
FUSED_RNN_INLINE void store_vector(T* to, Vec<T> x) {
  store_lanes(to, x);
}

typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

FUSED_RNN_INLINE Vec<float> load_vector(const BFloat16* from) {
#ifdef FUSED_RNN_NEON  // GCC 12 converts four lanes one by one
  return Vec<float>((Vec<float>::Native)vshll_n_u16(load_lanes<uint16x4_t>(from), 16));
#else
  return Vec<float>((Vec<float>::Native)(__builtin_convertvector(load_lanes<HalfWords>(from), Words) << 16));
#endif
}
#if defined(FUSED_RNN_NEON) && defined(FUSED_RNN_BFLOAT16_PRODUCTS)
FUSED_RNN_INLINE void store_vector(BFloat16* to, Vec<float> x) { store_lanes(to, vcvt_bf16_f32((float32x4_t)x.v)); }
#elif defined(FUSED_RNN_BFLOAT16_PRODUCTS)  // same rounding, but flushes subnormals to zero
FUSED_RNN_INLINE void store_vector(BFloat16* to, Vec<float> x) {
  store_lanes(to, _mm512_maskz_cvtneps_pbh(0xffff, (__m512)x.v));
}
#else
FUSED_RNN_INLINE void store_vector(BFloat16* to, Vec<float> x) {
  const Words u = (Words)x.v;
  const Words rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  const Words words = x.v != x.v ? Words{} + 0x7fc0u : rounded;
  store_lanes(to, __builtin_convertvector(words, HalfWords));
}
#endif
#ifdef FUSED_RNN_NEON
FUSED_RNN_INLINE Vec<float> load_vector(const Half* from) {
  return Vec<float>((Vec<float>::Native)vcvt_f32_f16(load_lanes<float16x4_t>(from)));
}
FUSED_RNN_INLINE void store_vector(Half* to, Vec<float> x) { store_lanes(to, vcvt_f16_f32((float32x4_t)x.v)); }
#elif defined(__AVX512F__)
FUSED_RNN_INLINE Vec<float> load_vector(const Half* from) {
  return Vec<float>((Vec<float>::Native)_mm512_maskz_cvtph_ps(0xffff, (__m256i)load_lanes<HalfWords>(from)));
}
FUSED_RNN_INLINE void store_vector(Half* to, Vec<float> x) {
  store_lanes(to, (HalfWords)_mm512_maskz_cvtps_ph(0xffff, (__m512)x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(FUSED_RNN_F16C) && defined(__AVX2__)
FUSED_RNN_INLINE Vec<float> load_vector(const Half* from) {
  return Vec<float>((Vec<float>::Native)_mm256_cvtph_ps((__m128i)load_lanes<HalfWords>(from)));
}
FUSED_RNN_INLINE void store_vector(Half* to, Vec<float> x) {
  store_lanes(to, (HalfWords)_mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
inline Vec<float> load_vector(const Half* from) {
  Vec<float> x;
  for (int i = 0; i < Vec<float>::kLanes; ++i) x.v[i] = load(from[i]);
  return x;
}
inline void store_vector(Half* to, Vec<float> x) {
  for (int i = 0; i < Vec<float>::kLanes; ++i) store(to[i], x.v[i]);
}
#endif

// Two consecutive vectors at once.
template <class S>
FUSED_RNN_INLINE void store_two_vectors(S* to, Vec<Arithmetic<S>> first, Vec<Arithmetic<S>> second) {
  store_vector(to, first);
  store_vector(to + Vec<Arithmetic<S>>::kLanes, second);
}
#if defined(FUSED_RNN_BFLOAT16_PRODUCTS) && !defined(FUSED_RNN_NEON)
template <>
FUSED_RNN_INLINE void store_two_vectors(BFloat16* to, Vec<float> first, Vec<float> second) {
  store_lanes(to, _mm512_maskz_cvtne2ps_pbh(0xffffffff, (__m512)second.v, (__m512)first.v));
}
#endif

#ifdef __AVX512F__
// The first `count` lanes, by masks: loops over them would be most of the code.
FUSED_RNN_INLINE uint32_t first_lanes(int64_t count) { return count <= 0 ? 0 : (1u << count) - 1; }
FUSED_RNN_INLINE Vec<float> load_lanes_masked(const float* from, int64_t count) {
  return Vec<float>((Vec<float>::Native)_mm512_maskz_loadu_ps(__mmask16(first_lanes(count)), from));
}
FUSED_RNN_INLINE Vec<double> load_lanes_masked(const double* from, int64_t count) {
  return Vec<double>((Vec<double>::Native)_mm512_maskz_loadu_pd(__mmask8(first_lanes(count)), from));
}
FUSED_RNN_INLINE void store_lanes_masked(float* to, Vec<float> x, int64_t count) {
  _mm512_mask_storeu_ps(to, __mmask16(first_lanes(count)), (__m512)x.v);
}
FUSED_RNN_INLINE void store_lanes_masked(double* to, Vec<double> x, int64_t count) {
  _mm512_mask_storeu_pd(to, __mmask8(first_lanes(count)), (__m512d)x.v);
}
template <class S>
constexpr bool kMasked = std::is_same_v<S, Arithmetic<S>>;
#else
template <class S>
constexpr bool kMasked = false;
#endif

// The first `count` lanes only; the others load as zeros.
template <class S>
FUSED_RNN_INLINE Vec<Arithmetic<S>> load_vector(const S* from, int64_t count) {
  constexpr int kLanes = Vec<Arithmetic<S>>::kLanes;
  if (count >= kLanes) return load_vector(from);
  if constexpr (kMasked<S>) {
    return load_lanes_masked(from, count);
  } else {
    S some[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) some[i] = from[i];
    return load_vector(some);
  }
}
template <class S>
FUSED_RNN_INLINE void store_vector(S* to, Vec<Arithmetic<S>> x, int64_t count) {
  constexpr int kLanes = Vec<Arithmetic<S>>::kLanes;
  if (count >= kLanes) return store_vector(to, x);
  if constexpr (kMasked<S>) {
    store_lanes_masked(to, x, count);
  } else {
    S some[kLanes];
    store_vector(some, x);
    for (int64_t i = 0; i < count; ++i) to[i] = some[i];
  }
}

// Converting copies; a null source means zeros.
template <class T, class S>
void load_row(T* to, const S* from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) store(to[j], from ? load(from[j]) : Arithmetic<T>(0));
}
template <class S, class T>
void store_row(S* to, const T* from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) store(to[j], load(from[j]));
}
template <class S>
void copy_row(S* to, const S* from, int64_t n) {
  if (from)
    memcpy(to, from, sizeof(S) * n);
  else
    memset(to, 0, sizeof(S) * n);
}
template <class S>
void load_row(S* to, const S* from, int64_t n) {
  copy_row(to, from, n);
}
template <class S>
void zero_row(S* to, int64_t n) {
  memset(to, 0, sizeof(S) * n);
}
template <class S>
void fill_row(S* to, Arithmetic<S> x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) store(to[j], x);
}

}  // namespace
}  // namespace fused_rnn::cpu
