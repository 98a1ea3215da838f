// Vectors of float or double as wide as the instruction set. A cell instantiated with Vec<T> computes kLanes units at
// once; functions.h has the functions that it calls.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__aarch64__) && !defined(FUSED_RNN_VECTOR_BYTES)
#define FUSED_RNN_NEON 1
#include <arm_neon.h>
#elif defined(__F16C__)  // as all that have AVX2 do
#define FUSED_RNN_F16C 1
#include <immintrin.h>
#endif

// For innermost loops: a call that is not inlined passes vectors through memory.
#define FUSED_RNN_INLINE inline __attribute__((always_inline))

namespace fused_rnn::cpu {
namespace {

#if defined(FUSED_RNN_VECTOR_BYTES)  // for tests: 4 makes vectors of one number
constexpr int kVectorBytes = FUSED_RNN_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// A specialization per type: the attribute is ignored on dependent types.
template <class T>
struct NativeOf;
template <>
struct NativeOf<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int32_t kSign = INT32_MIN;
};
template <>
struct NativeOf<double> {
  static constexpr int kBytes = kVectorBytes < int(sizeof(double)) ? sizeof(double) : kVectorBytes;
  typedef double Vector __attribute__((vector_size(kBytes)));
  typedef int64_t Integers __attribute__((vector_size(kBytes)));
  typedef uint64_t Bits __attribute__((vector_size(kBytes)));
  static constexpr int64_t kSign = INT64_MIN;
};

template <class T>
struct Vec {
  using Native = typename NativeOf<T>::Vector;
  using Integers = typename NativeOf<T>::Integers;
  using Bits = typename NativeOf<T>::Bits;
  static constexpr int kLanes = sizeof(Native) / sizeof(T);

  Native v;

  Vec() = default;
  Vec(Native native) : v(native) {}
  explicit Vec(T scalar) : v(Native{} + scalar) {}

  friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend Vec operator-(Vec a) { return -a.v; }
};

// V: a vector or any trivially copyable type.
template <class V, class T>
FUSED_RNN_INLINE V load_lanes(const T* from) {
  V lanes;
  memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
template <class V, class T>
FUSED_RNN_INLINE void store_lanes(T* to, V lanes) {
  memcpy(to, &lanes, sizeof lanes);
}

template <class T>
T sum_of(Vec<T> x) {
  T sum = 0;
  for (int i = 0; i < Vec<T>::kLanes; ++i) sum += x.v[i];
  return sum;
}

// ---- limits and signs ------------------------------------------------------------------------------------------------

// NaN stays NaN in all of these.
template <class T>
FUSED_RNN_INLINE Vec<T> at_most(Vec<T> x, T high) {
  return x.v > high ? Vec<T>(high).v : x.v;
}
template <class T>
FUSED_RNN_INLINE Vec<T> at_least(Vec<T> x, T low) {
  return x.v < low ? Vec<T>(low).v : x.v;
}
#ifdef __AVX512F__  // one instruction; GCC compiles the above to two
FUSED_RNN_INLINE Vec<float> at_most(Vec<float> x, float high) {
  return Vec<float>((Vec<float>::Native)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(high), (__m512)x.v));
}
FUSED_RNN_INLINE Vec<double> at_most(Vec<double> x, double high) {
  return Vec<double>((Vec<double>::Native)_mm512_maskz_min_pd(0xff, _mm512_set1_pd(high), (__m512d)x.v));
}
FUSED_RNN_INLINE Vec<float> at_least(Vec<float> x, float low) {
  return Vec<float>((Vec<float>::Native)_mm512_maskz_max_ps(0xffff, _mm512_set1_ps(low), (__m512)x.v));
}
FUSED_RNN_INLINE Vec<double> at_least(Vec<double> x, double low) {
  return Vec<double>((Vec<double>::Native)_mm512_maskz_max_pd(0xff, _mm512_set1_pd(low), (__m512d)x.v));
}
#elif defined(FUSED_RNN_NEON)  // likewise
FUSED_RNN_INLINE Vec<float> at_most(Vec<float> x, float high) {
  return Vec<float>((Vec<float>::Native)vminq_f32(vdupq_n_f32(high), (float32x4_t)x.v));
}
FUSED_RNN_INLINE Vec<double> at_most(Vec<double> x, double high) {
  return Vec<double>((Vec<double>::Native)vminq_f64(vdupq_n_f64(high), (float64x2_t)x.v));
}
FUSED_RNN_INLINE Vec<float> at_least(Vec<float> x, float low) {
  return Vec<float>((Vec<float>::Native)vmaxq_f32(vdupq_n_f32(low), (float32x4_t)x.v));
}
FUSED_RNN_INLINE Vec<double> at_least(Vec<double> x, double low) {
  return Vec<double>((Vec<double>::Native)vmaxq_f64(vdupq_n_f64(low), (float64x2_t)x.v));
}
#endif
template <class T>
FUSED_RNN_INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
  return at_least(at_most(x, high), low);
}

// By bit operations: cheaper than a comparison.
template <class T>
FUSED_RNN_INLINE Vec<T> magnitude(Vec<T> x) {
  using I = typename Vec<T>::Integers;
  return Vec<T>((typename Vec<T>::Native)((I)x.v & ~(I{} + NativeOf<T>::kSign)));
}
template <class T>
FUSED_RNN_INLINE Vec<T> with_sign_of(Vec<T> x, Vec<T> magnitude) {
  using I = typename Vec<T>::Integers;
  return Vec<T>((typename Vec<T>::Native)((I)magnitude.v | ((I)x.v & (I{} + NativeOf<T>::kSign))));
}

}  // namespace
}  // namespace fused_rnn::cpu
