// Weights of 8 bits, for inference: row j of a matrix is scale_j times integers in [-127, 127].
//
// Int8: the rows of A are integers too, each with a scale of its own, found when the row is quantized. Their products
// are exact: four neighbours of a row at a time, which a lane of a panel holds for its column, summed in 32 bits.
// Int8Weight: the rows of A are floats, and weights become floats when they are loaded.
//
// Processors multiply unsigned by signed bytes. With VNNI a row of A holds q + 128, and 128 times the sum of a column of
// B is subtracted afterwards; its sums of four products have 32 bits, as have those of AMX, which reads the same rows and
// panels for many rows at once (amx.h). AVX2 adds two products in 16 bits, where 255 * 127
// twice would saturate and 127 * 127 twice does not: so a row's magnitudes are multiplied by weights with its signs.
// ARM multiplies signed bytes: by SMMLA, two rows at a time (pairs.h), by SDOT, or by pairs of sums in 16 bits.
#pragma once
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "cpu/gemm/panels.h"

namespace fused_rnn::cpu {
namespace {

struct Int8 {
  int8_t value;
};
struct Int8Weight {
  int8_t value;
};
// The storage types of float layers with such weights.
template <class W>
struct FloatBesides {
  float value;
};

}  // namespace
}  // namespace fused_rnn::cpu

namespace fused_rnn {
namespace {
template <>
struct ArithmeticOf<cpu::Int8> {
  using type = int32_t;
};
template <>
struct ArithmeticOf<cpu::Int8Weight> {
  using type = float;
};
template <class W>
struct ArithmeticOf<cpu::FloatBesides<W>> {
  using type = float;
};
}  // namespace
}  // namespace fused_rnn

namespace fused_rnn::cpu {
namespace {

template <>
struct NativeOf<int32_t> {
  typedef int32_t Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
};
using Ints = NativeOf<int32_t>::Vector;
using FloatLanes = NativeOf<float>::Vector;
typedef int8_t SignedBytes __attribute__((vector_size(kVectorBytes / 4)));
typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));

struct Quad {
  int8_t k[4];
};
template <>
struct FactorOf<Int8> {
  using type = Quad;
};
template <>
struct LeftOf<Int8Weight> {
  using type = float;
};
#if defined(FUSED_RNN_NEON) && defined(__ARM_FEATURE_MATMUL_INT8)
template <>
constexpr bool kRowsInPairs<Int8> = true;
#endif

// ---- products -------------------------------------------------------------------------------------------------------

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr int32_t kOffset = 128;  // of the integers in a row of A
#else
constexpr int32_t kOffset = 0;
#endif

FUSED_RNN_INLINE Ints add_product(Ints sum, Quad x, Ints b) {
  int32_t four;
  memcpy(&four, &x, sizeof four);
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), (__m512i)b);
#elif defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(four), (__m256i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i a = _mm256_set1_epi32(four);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8((__m256i)b, a));
  return (Ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(FUSED_RNN_NEON)
  const int8x16_t a = (int8x16_t)vdupq_n_s32(four), right = (int8x16_t)b;
#ifdef __ARM_FEATURE_DOTPROD
  return (Ints)vdotq_s32((int32x4_t)sum, a, right);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(right)), high = vmull_high_s8(a, right);
  return (Ints)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
#endif
#else
  (void)four;
  return sum + x.k[0] * (b << 24 >> 24) + x.k[1] * (b << 16 >> 24) + x.k[2] * (b << 8 >> 24) + x.k[3] * (b >> 24);
#endif
}

// A vector of weights as floats.
template <>
FUSED_RNN_INLINE FloatLanes load_right<FloatLanes, Int8Weight>(const Int8Weight* from) {
#if defined(__AVX512F__)  // GCC converts bytes to floats one by one
  const __m512i integers = _mm512_maskz_cvtepi8_epi32(0xffff, load_lanes<__m128i>(from));
#elif defined(__AVX2__)
  const __m256i integers = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#elif defined(FUSED_RNN_NEON)
  const int8x8_t bytes = (int8x8_t)vdup_n_u32(load_lanes<uint32_t>(from));
  const int32x4_t integers = vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
#else
  const Ints integers = __builtin_convertvector(load_lanes<SignedBytes>(from), Ints);
#endif
  return __builtin_convertvector((Ints)integers, FloatLanes);
}

// ---- float layers with such weights ---------------------------------------------------------------------------------

template <class W>
float load(FloatBesides<W> x) {
  return x.value;
}
template <class W>
void store(FloatBesides<W>& to, float x) {
  to.value = x;
}
template <class W>
FUSED_RNN_INLINE Vec<float> load_vector(const FloatBesides<W>* from) {
  return load_lanes<Vec<float>>(from);
}
template <class W>
FUSED_RNN_INLINE void store_vector(FloatBesides<W>* to, Vec<float> x) {
  store_lanes(to, x);
}

template <class S>
struct WeightOf {
  using type = Element<S>;
};
template <class W>
struct WeightOf<FloatBesides<W>> {
  using type = W;
};
// The elements of packed weights.
template <class S>
using Weight = typename WeightOf<S>::type;
template <class S>
constexpr bool kQuantized = !std::is_same_v<Weight<S>, Element<S>>;

// ---- quantizing -----------------------------------------------------------------------------------------------------

// What makes the integers of a row, in [-127, 127]. A row with NaN or infinities has the scale NaN.
struct Scale {
  float value, inverse;

  static Scale of(float largest) {
    constexpr float kLeast = 1e-36f;  // 127 / largest is finite; what is below becomes 0
    return {largest / 127.f + largest * 0.f, largest >= kLeast ? 127.f / largest : 0.f};
  }
};

template <class S>
Scale scale_of(const S* row, int64_t count) {
  constexpr int kLanes = Vec<float>::kLanes;
  using Lanes = std::make_integer_sequence<int, kLanes>;
  // Without their signs, floats are ordered as their bits are; infinity and NaN come last.
  const auto larger = [](Ints a, Ints b) -> Ints { return a > b ? a : b; };
  Ints largest = {};
  for (int64_t k = 0; k < count; k += kLanes)
    largest = larger(largest, (Ints)load_vector(row + k, count - k).v & 0x7fffffff);
  for (int lanes = kLanes; lanes > 1; lanes /= 2)
    largest = larger(zip_low(largest, largest, Lanes{}), zip_high(largest, largest, Lanes{}));
  return Scale::of(((FloatLanes)largest)[0]);
}

// Rounded to the nearest, ties to even.
FUSED_RNN_INLINE Ints quantized(Vec<float> x, float inverse) {
  constexpr float kRound = MathOf<float>::kRound;
  constexpr int32_t kRoundBits = 0x4b400000;
  static_assert(kRound == 12582912.f);
  return (Ints)(x * Vec<float>(inverse) + Vec<float>(kRound)).v - kRoundBits;
}

// The low bytes.
FUSED_RNN_INLINE Bytes low_bytes(Ints q) {
#ifdef FUSED_RNN_NEON  // GCC narrows four lanes one by one
  const int16x4_t words = vmovn_s32((int32x4_t)q);
  const uint32_t four = vget_lane_u32((uint32x2_t)vmovn_s16(vcombine_s16(words, words)), 0);
  return load_lanes<Bytes>(&four);
#else
  return __builtin_convertvector(q, Bytes);
#endif
}

// Rows of A.
struct QuantizedRows {
  Int8* numbers;
  float* scales;
  int64_t stride;

  // Whole cache lines; no multiple of 4 KiB, as row_stride (passes/workspace.h).
  static int64_t stride_of(int64_t depth) {
    const int64_t padded = (depth + kCacheLine - 1) / kCacheLine * kCacheLine;
    return padded % 4096 == 0 ? padded + kCacheLine : padded;
  }
  Int8* row(int64_t i) const { return numbers + i * stride; }

  // Whole vectors are stored: of the last one, what is past the row's end meets weights of 0.
  void quantize(int64_t i, const float* from, int64_t depth) const {
    constexpr int kLanes = Vec<float>::kLanes;
    const Scale scale = scale_of(from, depth);
    scales[i] = scale.value;
    for (int64_t k = 0; k < depth; k += kLanes) {
      const Ints q = quantized(load_vector(from + k, depth - k), scale.inverse) + kOffset;
      store_lanes(row(i) + k, low_bytes(q));
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
