// The functions that the library's own cells call, on vectors: exp, sigmoid, tanh, relu. more_functions.h has the rest.
//
// Error bounds: float: tanh and sigmoid 1 ulp (sigmoid 1.2 without FMA), exp 2 ulp. double: 4 eps. Sigmoid is 0 where it
// would be subnormal. Sigmoid stays within [0, 1] and tanh within [-1, 1]; they are monotonic up to 2 eps.
//
// A build for bfloat16 alone stores 8 bits and uses shorter polynomials: exp and tanh are within 2^-13, and so is
// 1 - sigmoid, the decay per step of a long memory. tests/cpu/test_vector.py checks all this.
#pragma once
#ifdef __AVX512F__
#include "cpu/simd/tanh.h"
#endif
#include "cpu/simd/vector.h"

namespace fused_rnn::cpu {
namespace {

#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
constexpr bool kShort = true;
#else
constexpr bool kShort = false;
#endif

// Constants of exp and tanh.
template <class T>
struct MathOf;
template <>
struct MathOf<float> {
  static constexpr float kLowest = -87.3f, kHighest = 87.3f;               // e^x and 1 / e^x stay normal numbers
  static constexpr float kZero = -104.f, kInfinity = 89.f;                 // e^x is 0, or infinity
  static constexpr float kRound = 12582912.f;                              // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLn2 = 0.693359375f, kLn2Rest = -2.12194440e-4f;  // few bits: n * kLn2 is exact
  static constexpr int kMantissa = 23, kBias = 127;
  // Minimax polynomials: (e^r - 1 - r) / r^2, which leaves e^r within 2^-28, or, short, (e^r - 1) / r within 2^-16.
  static constexpr bool kFew = kShort;
  static constexpr int kTerms = kFew ? 4 : 5;
  static constexpr float kLongFactors[5] = {0.49999994f, 0.166665211f, 0.0416682623f, 0.00836867094f, 0.00138210296f};
  static constexpr float kFewFactors[4] = {0.99998511f, 0.50001252f, 0.16766713f, 0.04166658f};
  static constexpr const float* kFactors = kFew ? kFewFactors : kLongFactors;
};
template <>
struct MathOf<double> {
  static constexpr double kLowest = -708., kHighest = 708., kZero = -746., kInfinity = 710.;  // likewise
  static constexpr double kRound = 6755399441055744.;                                         // 1.5 * 2^52
  static constexpr double kLn2 = 6.93147180369123816490e-01, kLn2Rest = 1.90821492927058770002e-10;
  static constexpr int kMantissa = 52, kBias = 1023;
  // The exponential series from r^2 / 2 on, truncated below half an ulp.
  static constexpr bool kFew = false;
  static constexpr int kTerms = 12;
  static constexpr double kFactors[kTerms] = {1. / 2,       1. / 6,        1. / 24,        1. / 120,
                                              1. / 720,     1. / 5040,     1. / 40320,     1. / 362880,
                                              1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800.};
};

// 1 / x within 1 or 2 ulp, for x whose reciprocal is a normal number.
template <class T>
FUSED_RNN_INLINE Vec<T> reciprocal(Vec<T> x) {
  return Vec<T>(T(1)) / x;
}
// The same to within 2^-14, and of so few bits that 1 minus it is exact from 2^-8 on.
FUSED_RNN_INLINE Vec<float> estimated_reciprocal(Vec<float> x) {
  [[maybe_unused]] const auto few_bits = [](Vec<float> y) {
    return Vec<float>((Vec<float>::Native)((Vec<float>::Bits)y.v & ~0xffu));
  };
#ifdef __AVX512F__  // with a Newton step, a quarter of the time of a division
  return Vec<float>((NativeOf<float>::Vector)_mm512_maskz_rcp14_ps(0xffff, (__m512)x.v));
#elif defined(FUSED_RNN_NEON)
  if constexpr (!kShort) return few_bits(reciprocal(x));  // a division, which a second step would have to replace
  const float32x4_t given = (float32x4_t)x.v, estimate = vrecpeq_f32(given);  // within 2^-8
  return Vec<float>((NativeOf<float>::Vector)vmulq_f32(estimate, vrecpsq_f32(given, estimate)));
#else
  return few_bits(reciprocal(x));
#endif
}
#ifdef __AVX512F__
FUSED_RNN_INLINE Vec<float> reciprocal(Vec<float> x) {
  const Vec<float> estimate = estimated_reciprocal(x);
  return estimate + estimate * (Vec<float>(1.f) - x * estimate);
}
FUSED_RNN_INLINE Vec<double> reciprocal(Vec<double> x) {  // two steps
  const Vec<double> one(1.), estimate((NativeOf<double>::Vector)_mm512_maskz_rcp14_pd(0xff, (__m512d)x.v));
  const Vec<double> better = estimate + estimate * (one - x * estimate);
  return better + better * (one - x * better);
}
#endif

// e^x = 2^n + 2^n (e^r - 1) with n = round(x / ln 2), where e^r - 1 is a polynomial without a constant term, accurate
// near 0 too. x must be within MathOf's range.
template <class T>
struct ExpParts {
  Vec<T> n;
  Vec<T> power;  // 2^n
  Vec<T> rest;   // e^r - 1
};

template <class T>
FUSED_RNN_INLINE ExpParts<T> exp_parts(Vec<T> x) {
  using M = MathOf<T>;
  using V = Vec<T>;
  const V shifted = x * V(T(1.44269504088896340736)) + V(M::kRound);
  const V n = shifted - V(M::kRound);
  const V r = (x - n * V(M::kLn2)) - n * V(M::kLn2Rest);
  // The low bits of `shifted` hold n (any bits for NaN); with the bias added and shifted into place they are those of 2^n.
  const typename V::Bits bits = (typename V::Bits)shifted.v;
  const typename V::Bits power = (bits + M::kBias) << M::kMantissa;
  // Pairs of terms: half as long a dependency chain.
  constexpr int kLast = M::kTerms - 1;
  const V rr = r * r;
  V p = kLast % 2 ? V(M::kFactors[kLast]) * r + V(M::kFactors[kLast - 1]) : V(M::kFactors[kLast]);
#pragma GCC unroll 8
  for (int k = kLast - (kLast % 2 ? 3 : 2); k >= 0; k -= 2)
    p = p * rr + (V(M::kFactors[k + 1]) * r + V(M::kFactors[k]));
  return {n, V((typename V::Native)power), M::kFew ? p * r : p * rr + r};
}

// e^x from its parts but for `power`: n may be such that 2^n is no normal number.
template <class T>
FUSED_RNN_INLINE Vec<T> whole(ExpParts<T> e) {
  using M = MathOf<T>;
  using I = typename Vec<T>::Integers;
  const Vec<T> round(M::kRound);
  const I n = (I)(e.n + round).v - (I)round.v, half = n >> 1, rest = n - half;
  const auto power = [](I n) { return Vec<T>((typename Vec<T>::Native)((n + M::kBias) << M::kMantissa)); };
  return (Vec<T>(T(1)) + e.rest) * power(half) * power(rest);
}
#ifdef __AVX512F__  // one instruction scales by 2^n
FUSED_RNN_INLINE Vec<float> whole(ExpParts<float> e) {
  const Vec<float> x = Vec<float>(1.f) + e.rest;
  return Vec<float>((Vec<float>::Native)_mm512_maskz_scalef_ps(0xffff, (__m512)x.v, (__m512)e.n.v));
}
FUSED_RNN_INLINE Vec<double> whole(ExpParts<double> e) {
  const Vec<double> x = Vec<double>(1.) + e.rest;
  return Vec<double>((Vec<double>::Native)_mm512_maskz_scalef_pd(0xff, (__m512d)x.v, (__m512d)e.n.v));
}
#endif

template <class T>
FUSED_RNN_INLINE Vec<T> exp(Vec<T> x) {
  return whole(exp_parts(clamp(x, MathOf<T>::kZero, MathOf<T>::kInfinity)));
}

// 1 / (e^x + 1) from the parts of e^x, for x >= 0.
template <class T>
FUSED_RNN_INLINE Vec<T> reciprocal_of_next(ExpParts<T> e) {
  return reciprocal(e.power * e.rest + (e.power + Vec<T>(T(1))));
}
// A Newton step from the parts, which are exact, unlike their sum. The first difference is exact, too.
FUSED_RNN_INLINE Vec<float> reciprocal_of_next(ExpParts<float> e) {
  const Vec<float> one(1.f), estimate = estimated_reciprocal(e.power * e.rest + (e.power + one));
  const Vec<float> scaled = e.power * estimate;
  return estimate + estimate * (((one - scaled) - scaled * e.rest) - estimate);
}

template <class T>
FUSED_RNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using M = MathOf<T>;
  const ExpParts<T> e = exp_parts(clamp(-x, M::kLowest, M::kHighest));
  const Vec<T> y = reciprocal(e.power * e.rest + (e.power + Vec<T>(T(1))));
  return x.v < M::kLowest ? Vec<T>(T(0)).v : y.v;
}
// From that of -|x|, which the parts give more exactly.
FUSED_RNN_INLINE Vec<float> sigmoid(Vec<float> x) {
  if constexpr (kShort) return sigmoid<float>(x);
  using V = Vec<float>;
  const V y = reciprocal_of_next(exp_parts(at_most(magnitude(x), MathOf<float>::kHighest)));
  const V low(x.v < MathOf<float>::kLowest ? V(0.f).v : y.v);
  return V(x.v > 0.f ? (V(1.f) - low).v : low.v);
}

// tanh |x| = 1 - 2 / (e^2|x| + 1), which rounds only once: for y near 1 the gradient, 1 - y^2, amplifies y's error. It
// rounds to 1 long before the end of this range.
template <class T>
FUSED_RNN_INLINE Vec<T> tanh_of_large(Vec<T> x, ExpParts<T> e) {
  return with_sign_of(x, Vec<T>(T(1)) - Vec<T>(T(2)) * reciprocal_of_next(e));
}

// For small x: a / (a + 2) with a = e^2|x| - 1.
template <class T>
FUSED_RNN_INLINE Vec<T> tanh(Vec<T> x) {
  using V = Vec<T>;
  const ExpParts<T> e = exp_parts(at_most(magnitude(x + x), T(44)));
  const V a = e.power * e.rest + (e.power - V(T(1)));
  const V small = with_sign_of(x, a * reciprocal_of_next(e));
  return V(a.v > T(1) ? tanh_of_large(x, e).v : small.v);
}
// For small x: the minimax polynomial x + x^3 P(x^2), within 2^-26.
FUSED_RNN_INLINE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  if constexpr (kShort) {  // a / (a + 2) everywhere
    const ExpParts<float> e = exp_parts(clamp(x + x, -44.f, 44.f));
    const V a = e.power * e.rest + (e.power - V(1.f));
    return clamp(a * estimated_reciprocal(a + V(2.f)), -1.f, 1.f);
  }
#ifdef __AVX512F__
  return tanh_by_table(x);
#else
  constexpr float kFactors[] = {-0.333331913f, 0.133291319f, -0.0535599701f, 0.0200943742f, -0.00514051272f};
  const V size = magnitude(x), z = x * x;
  V p = V(kFactors[4]) * z + V(kFactors[3]);
  p = p * z + V(kFactors[2]);
  p = p * z + V(kFactors[1]);
  p = p * z + V(kFactors[0]);
  const V small = x + (x * z) * p;
  return V(size.v > 0.67f ? tanh_of_large(x, exp_parts(at_most(size + size, 44.f))).v : small.v);
#endif
}

template <class T>
FUSED_RNN_INLINE Vec<T> relu(Vec<T> x) {
  return x.v < 0 ? typename Vec<T>::Native{} : x.v;
}
template <class T>
FUSED_RNN_INLINE Vec<T> positive(Vec<T> x) {
  const auto zero_or_nan = x.v == x.v ? typename Vec<T>::Native{} : x.v;
  return x.v > 0 ? Vec<T>(T(1)).v : zero_or_nan;
}

}  // namespace
}  // namespace fused_rnn::cpu
