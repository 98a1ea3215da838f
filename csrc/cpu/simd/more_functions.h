// The functions of cells/math.h that only cells registered at run time call, on vectors.
//
// Error bounds: log, log1p and expm1 4 ulp, in float and double; sqrt is exact. What has no vector code is the math
// library's, lane by lane. tests/cpu/test_more_functions.py checks this.
#pragma once
#include <math.h>

#include "cells/math.h"
#include "cpu/simd/functions.h"

namespace fused_rnn::cpu {
namespace {

// ---- comparisons -----------------------------------------------------------------------------------------------------

// 1 where `mask` is all ones, 0 where it is 0.
template <class T>
FUSED_RNN_INLINE Vec<T> one_where(typename Vec<T>::Integers mask) {
  return mask ? Vec<T>(T(1)).v : typename Vec<T>::Native{};
}
template <class T>
FUSED_RNN_INLINE Vec<T> less(Vec<T> a, Vec<T> b) {
  return one_where<T>(a.v < b.v);
}
template <class T>
FUSED_RNN_INLINE Vec<T> less_equal(Vec<T> a, Vec<T> b) {
  return one_where<T>(a.v <= b.v);
}
template <class T>
FUSED_RNN_INLINE Vec<T> equal(Vec<T> a, Vec<T> b) {
  return one_where<T>(a.v == b.v);
}
template <class T>
FUSED_RNN_INLINE Vec<T> select(Vec<T> mask, Vec<T> a, Vec<T> b) {
  return mask.v != 0 ? a.v : b.v;
}
template <class T>
FUSED_RNN_INLINE Vec<T> minimum(Vec<T> a, Vec<T> b) {
  return (a.v < b.v) | (a.v != a.v) ? a.v : b.v;
}
template <class T>
FUSED_RNN_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return (a.v > b.v) | (a.v != a.v) ? a.v : b.v;
}
template <class T>
FUSED_RNN_INLINE Vec<T> abs(Vec<T> x) {
  return magnitude(x);
}
template <class T>
FUSED_RNN_INLINE Vec<T> sign(Vec<T> x) {
  const Vec<T> zero(T(0));
  return less(zero, x) - less(x, zero);
}

// ---- roots, powers, waves --------------------------------------------------------------------------------------------

template <class T, class F>
FUSED_RNN_INLINE Vec<T> by_lane(Vec<T> x, F f) {
  Vec<T> y;
  for (int i = 0; i < Vec<T>::kLanes; ++i) y.v[i] = f(x.v[i]);
  return y;
}
template <class T>
FUSED_RNN_INLINE Vec<T> sqrt(Vec<T> x) {
  return by_lane(x, [](T lane) { return fused_rnn::sqrt(lane); });
}
#ifdef __AVX512F__
FUSED_RNN_INLINE Vec<float> sqrt(Vec<float> x) {
  return Vec<float>((Vec<float>::Native)_mm512_maskz_sqrt_ps(0xffff, (__m512)x.v));
}
FUSED_RNN_INLINE Vec<double> sqrt(Vec<double> x) {
  return Vec<double>((Vec<double>::Native)_mm512_maskz_sqrt_pd(0xff, (__m512d)x.v));
}
#endif
template <class T>
FUSED_RNN_INLINE Vec<T> sin(Vec<T> x) {
  return by_lane(x, [](T lane) { return fused_rnn::sin(lane); });
}
template <class T>
FUSED_RNN_INLINE Vec<T> cos(Vec<T> x) {
  return by_lane(x, [](T lane) { return fused_rnn::cos(lane); });
}
template <class T>
FUSED_RNN_INLINE Vec<T> erf(Vec<T> x) {
  return by_lane(x, [](T lane) { return fused_rnn::erf(lane); });
}
template <class T>
FUSED_RNN_INLINE Vec<T> pow(Vec<T> x, Vec<T> y) {
  Vec<T> z;
  for (int i = 0; i < Vec<T>::kLanes; ++i) z.v[i] = fused_rnn::pow(x.v[i], y.v[i]);
  return z;
}

// ---- logarithms ------------------------------------------------------------------------------------------------------

template <class T>
struct LogOf;
template <>
struct LogOf<float> {
  static constexpr float kTiny = 1.17549435e-38f, kScale = 33554432.f;  // the least normal number; 2^25
  static constexpr int kScaleBits = 25, kTerms = 4;
  static constexpr int32_t kRootOfHalf = 0x3f3504f3;  // bits
};
template <>
struct LogOf<double> {
  static constexpr double kTiny = 2.2250738585072014e-308, kScale = 18014398509481984.;  // 2^54
  static constexpr int kScaleBits = 54, kTerms = 10;
  static constexpr int64_t kRootOfHalf = 0x3fe6a09e667f3bcd;
};

// log(2^k (1 + f)) + correction, for sqrt(1/2) <= 1 + f < sqrt(2) and a small correction. With s = f / (2 + f),
// log(1 + f) = 2s + 2/3 s^3 + 2/5 s^5 + ..., and 2s = f - f^2 / 2 + s f^2 / 2 leaves f itself unrounded.
template <class T>
FUSED_RNN_INLINE Vec<T> log_of_parts(Vec<T> k, Vec<T> f, Vec<T> correction) {
  using V = Vec<T>;
  using M = MathOf<T>;
  const V s = f * reciprocal(V(T(2)) + f), z = s * s, half = V(T(0.5)) * f * f;
  V series(T(0));
#pragma GCC unroll 16
  for (int n = LogOf<T>::kTerms; n > 0; --n) series = (series + V(T(2) / T(2 * n + 1))) * z;
  const V low = s * (half + series) + (k * V(M::kLn2Rest) + correction);
  return k * V(M::kLn2) - ((half - low) - f);
}

// The same for a positive normal number.
template <class T>
FUSED_RNN_INLINE Vec<T> log_of_normal(Vec<T> x, Vec<T> shift, Vec<T> correction) {
  using V = Vec<T>;
  using I = typename V::Integers;
  using M = MathOf<T>;
  const I bits = (I)x.v, k = (bits - LogOf<T>::kRootOfHalf) >> M::kMantissa;
  const V exponent = V((typename V::Native)((I)V(M::kRound).v + k)) - V(M::kRound);
  const V mantissa((typename V::Native)(bits - (k << M::kMantissa)));
  return log_of_parts(exponent - shift, mantissa - V(T(1)), correction);
}

// `y` = log(x), but at 0, infinity, NaN and below 0.
template <class T>
FUSED_RNN_INLINE Vec<T> log_at_ends(Vec<T> x, Vec<T> y) {
  using V = Vec<T>;
  const V infinity{T(INFINITY)}, nan{T(NAN)};
  const V inside = x.v < infinity.v ? y.v : x.v;  // infinity and NaN stay
  const V above = x.v < 0 ? nan.v : inside.v;
  return x.v == 0 ? (-infinity).v : above.v;
}

template <class T>
FUSED_RNN_INLINE Vec<T> log(Vec<T> x) {
  using V = Vec<T>;
  using L = LogOf<T>;
  const V zero(T(0)), scaled = x * V(L::kScale);
  const V normal = x.v < L::kTiny ? scaled.v : x.v, shift = x.v < L::kTiny ? V(T(L::kScaleBits)).v : zero.v;
  return log_at_ends(x, log_of_normal(normal, shift, zero));
}

// log(u) with u = 1 + x, and what is lost of x in u.
template <class T>
FUSED_RNN_INLINE Vec<T> log1p(Vec<T> x) {
  using V = Vec<T>;
  const V one(T(1)), u = one + x, of_small = x - (u - one), of_large = one - (u - x);
  const V lost = x.v < 1 ? of_small.v : of_large.v;
  return log_at_ends(u, log_of_normal(u, V(T(0)), lost * reciprocal(u)));
}

template <class T>
FUSED_RNN_INLINE Vec<T> expm1(Vec<T> x) {
  using M = MathOf<T>;
  const ExpParts<T> e = exp_parts(clamp(x, M::kLowest, M::kHighest));
  const Vec<T> y = e.power * e.rest + (e.power - Vec<T>(T(1)));
  return x.v > M::kHighest ? exp(x).v : y.v;
}

}  // namespace
}  // namespace fused_rnn::cpu
