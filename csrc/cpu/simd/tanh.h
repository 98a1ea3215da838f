// tanh of float with AVX-512, whose permutations look up a table of sixteen numbers: half the latency of formulas by
// exp, which is what a step of a small layer waits for.
//
// tanh x = m + m P(x) with m = min(x, 1), for x >= 0. P is a polynomial in the distance from the start of x's interval:
// [0, 1/4), then two intervals for each power of two. It adds at most 0.1 * 2^-24 to the rounding of the result.
#pragma once
#include "cpu/simd/vector.h"

namespace fused_rnn::cpu {
namespace {

// Columns: intervals, by the low bits of their number. Rows: an interval's start; the factors of P from the constant
// on. scripts/fit_tanh.py prints this.
constexpr float kTanhTable[9][16] __attribute__((aligned(64))) = {
    {2.0f, 3.0f, 4.0f, 6.0f, 8.0f, 0, 0, 0, 0, 0, 0.25f, 0.375f, 0.5f, 0.75f, 1.0f, 1.5f},
    {-0.03597242f, -0.004945246f, -6.7069527e-04f, -1.2288256e-05f, -2.2506862e-07f, 0, 0, 0, 0, 0, -0.02032535f,
     -0.04438027f, -0.075765684f, -0.15313473f, -0.23840584f, -0.09485175f},
    {0.07065098f, 0.009866001f, 0.0013406114f, 2.457021e-05f, 4.5002466e-07f, 0, 0, 0, 0, 0, -0.15863977f, -0.22410686f,
     -0.27557364f, -0.33370468f, 0.41997328f, 0.1807068f},
    {-0.06811352f, -0.009816477f, -0.0013362623f, -2.4505462e-05f, -4.4884456e-07f, 0, 0, 0, 0, -0.33333343f,
     -0.28627917f, -0.23517452f, -0.17568508f, -0.060367428f, -0.31981567f, -0.16357176f},
    {0.042148493f, 0.0064737396f, 8.758951e-04f, 1.607938e-05f, 2.9451894e-07f, 0, 0, 0, 0, 5.5985947e-06f, 0.11411728f,
     0.14596714f, 0.16229305f, 0.13806564f, 0.10318236f, 0.087887324f},
    {-0.018073788f, -0.0031502824f, -4.0987824e-04f, -7.5353178e-06f, -1.3802672e-07f, 0, 0, 0, 0, 0.13321617f,
     0.16786306f, 0.16369723f, 0.0117269205f, -0.0706222f, 0.030220667f, -0.025417058f},
    {0.005255637f, 0.0011633742f, 1.3453934e-04f, 2.4775452e-06f, 4.538441e-08f, 0, 0, 0, 0, 0.0012051064f, -0.9968696f,
     -1.4595947f, -0.11081768f, 0.108919196f, -0.05421698f, -0.0011118539f},
    {-8.9780457e-04f, -3.0364317e-04f, -2.7624596e-05f, -5.095278e-07f, -9.33424e-09f, 0, 0, 0, 0, -0.060553174f,
     5.4037633f, 8.077637f, 0.16803552f, -0.35021642f, 0.032418065f, 0.0042014224f},
    {5.71751e-05f, 4.1833842e-05f, 2.623788e-06f, 4.8461537e-08f, 8.878372e-10f, 0, 0, 0, 0, 0.018556869f, -12.368047f,
     -18.422361f, -0.15991637f, 0.42196885f, -0.009917049f, -0.0012009935f},
};

FUSED_RNN_INLINE Vec<float> tanh_by_table(Vec<float> x) {
  using V = Vec<float>;
  using I = V::Integers;
  // An interval's number: the exponent and the first bit of the mantissa.
  constexpr int32_t kShift = 22, kNumberOfFirst = (0x3e800000 >> kShift) - 1;  // 0x3e800000: 1/4
  const V size = at_most(magnitude(x), 9.9f);                                  // where tanh is 1
  const I number = (I)size.v >> kShift;
  const __m512i column = (__m512i)(number > kNumberOfFirst ? number : I{} + kNumberOfFirst);
  const auto row = [&](int i) {
    return V((V::Native)_mm512_maskz_permutexvar_ps(0xffff, column, _mm512_load_ps(kTanhTable[i])));
  };
  const V t = size - row(0), tt = t * t;
  const V low = (row(4) * t + row(3)) * tt + (row(2) * t + row(1));
  const V high = (row(8) * t + row(7)) * tt + (row(6) * t + row(5));
  const V p = high * (tt * tt) + low, m = at_most(size, 1.f);
  return with_sign_of(x, m * p + m);
}

}  // namespace
}  // namespace fused_rnn::cpu
