// Split floats: a float as the sum of three bfloat16, for AMX tiles, which multiply those many times faster:
//
//   a = a0 + a1 + a2, 8 bits each: exact      a b = a0 b0 + a0 b1 + a1 b0 + a1 b1 + a0 b2 + a2 b0, about
//
// The omitted products are at most 2^-24 of a b, half an ulp: no more than the rounding error of each float addition.
// The six products are summed in float.
//
// Range: tiles flush denormals to 0, so sums below 2^-110 (1e-33) lose their last digits. Of infinity only the third
// part is infinite: it is multiplied by first parts alone, which are nonzero for every normal number, so no infinity
// times 0 appears that the floats would not have. NaN stays NaN. A product that overflows may become NaN instead of
// infinity, since its parts may have different signs.
//
// A row of A, and a panel (panels.h), 32 k of it:    first parts, 32 | second parts, 32 | third parts, 32
#pragma once
#include <utility>

#include "cpu/gemm/element.h"

namespace fused_rnn::cpu {
namespace {

constexpr int64_t kSplitLanes = Vec<float>::kLanes, kSplitChunk = kDepthStep<Split>;
constexpr uint32_t kUpperHalf = 0xffff0000u;

// The nearest finite bfloat16.
FUSED_RNN_INLINE Floats nearest_part(Floats x) {
  constexpr int kLargestForInfinities = 0x00ef0000;  // becomes the largest float; only its upper half is kept below
  const __m512 rounded = (__m512)(((Words)x + 0x8000u) & kUpperHalf);
  const __m512 finite = _mm512_fixupimm_ps(rounded, rounded, _mm512_set1_epi32(kLargestForInfinities), 0);
  return (Floats)((Words)finite & kUpperHalf);
}

FUSED_RNN_INLINE Parts<Split> split(Floats x) {
  const Floats first = nearest_part(x), rest = x - first, second = nearest_part(rest);
  return {{first, second, (Floats)((Words)(rest - second) & kUpperHalf)}};
}
// Exact: 8 bits are added to 8, and 8 to 16.
FUSED_RNN_INLINE Vec<float> whole(const Parts<Split>& x) { return Vec<float>(x.part[0] + (x.part[1] + x.part[2])); }

// The address of part p of number j. From j on, `here` numbers are contiguous; the following ones are kAfterBreak
// further on.
struct SplitPlace {
  static constexpr int64_t kAfterBreak = (kParts<Split> - 1) * kSplitChunk;
  int64_t offset, here;

  FUSED_RNN_INLINE explicit SplitPlace(int64_t j)
      : offset(j / kSplitChunk * kSplitChunk * kParts<Split> + j % kSplitChunk), here(kSplitChunk - j % kSplitChunk) {}
  template <class E>  // Split or const Split
  FUSED_RNN_INLINE auto part(E* row, int p) const {
    using Bits = std::conditional_t<std::is_const_v<E>, const uint16_t, uint16_t>;
    return reinterpret_cast<Bits*>(row) + offset + p * kSplitChunk;
  }
  // Whether all lanes of a vector from j on are contiguous and within `count`; otherwise, masks of those that are.
  FUSED_RNN_INLINE bool is_whole(int64_t count) const { return here >= kSplitLanes && count >= kSplitLanes; }
  FUSED_RNN_INLINE __mmask16 lanes_here() const { return first_lanes(here); }
  FUSED_RNN_INLINE static __mmask16 first_lanes(int64_t count) {
    return count >= kSplitLanes ? __mmask16(0xffff) : __mmask16((1u << count) - 1u);
  }
};

template <>
FUSED_RNN_INLINE Parts<Split> load_parts<Split, float>(const float* row, int64_t j, int64_t count) {
  return split(load_vector(row + j, count).v);
}
template <>
FUSED_RNN_INLINE Parts<Split> load_parts<Split, Split>(const Split* row, int64_t j, int64_t count) {
  const SplitPlace place(j);
  Parts<Split> x;
#pragma GCC unroll 3
  for (int p = 0; p < kParts<Split>; ++p) {
    const uint16_t* from = place.part(row, p);
    HalfWords bits;
    if (place.is_whole(count)) [[likely]] {
      bits = load_lanes<HalfWords>(from);
    } else {
      const __mmask16 wanted = SplitPlace::first_lanes(count), here = place.lanes_here();
      const __m256i before = _mm256_maskz_loadu_epi16(wanted & here, from);
      bits = (HalfWords)_mm256_mask_loadu_epi16(before, wanted & ~here, from + SplitPlace::kAfterBreak);
    }
    x.part[p] = (Floats)(__builtin_convertvector(bits, Words) << 16);
  }
  return x;
}

using BothVectors = std::make_integer_sequence<int, 2 * kSplitLanes>;
template <int... kLane>
FUSED_RNN_INLINE Floats upper_halves(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
  return (Floats)__builtin_shufflevector((Halves)a, (Halves)b, (2 * kLane + 1)...);
}
template <>
FUSED_RNN_INLINE Parts<Split> load_factors<Split, float>(const float* from, int64_t count) {
  const Parts<Split> low = load_parts<Split>(from, 0, count),
                     high = load_parts<Split>(from, kSplitLanes, count - kSplitLanes);
  Parts<Split> x;
#pragma GCC unroll 3
  for (int p = 0; p < kParts<Split>; ++p) x.part[p] = upper_halves(low.part[p], high.part[p], BothVectors{});
  return x;
}

template <>
FUSED_RNN_INLINE Vec<float> load_at<Split>(const Split* row, int64_t j, int64_t count) {
  return whole(load_parts<Split>(row, j, count));
}
template <>
FUSED_RNN_INLINE Vec<float> load_at<Split>(const Split* row, int64_t j) {
  return load_at(row, j, kSplitLanes);
}
template <>
FUSED_RNN_INLINE void store_at<Split>(Split* row, int64_t j, Vec<float> x, int64_t count) {
  const SplitPlace place(j);
  const Parts<Split> parts = split(x.v);
#pragma GCC unroll 3
  for (int p = 0; p < kParts<Split>; ++p) {
    uint16_t* to = place.part(row, p);
    const __m256i bits = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)((Words)parts.part[p] >> 16));
    if (place.is_whole(count)) [[likely]] {
      store_lanes(to, bits);
    } else {
      const __mmask16 wanted = SplitPlace::first_lanes(count), here = place.lanes_here();
      _mm256_mask_storeu_epi16(to, wanted & here, bits);
      _mm256_mask_storeu_epi16(to + SplitPlace::kAfterBreak, wanted & ~here, bits);
    }
  }
}
template <>
FUSED_RNN_INLINE void store_at<Split>(Split* row, int64_t j, Vec<float> x) {
  store_at(row, j, x, kSplitLanes);
}

template <>
FUSED_RNN_INLINE void store_two_at<Split>(Split* row, int64_t j, Vec<float> first, Vec<float> second) {
  const SplitPlace place(j);
  if (place.here < kSplitChunk) {
    store_at(row, j, first);
    return store_at(row, j + kSplitLanes, second);
  }
  const Parts<Split> low = split(first.v), high = split(second.v);
#pragma GCC unroll 3
  for (int p = 0; p < kParts<Split>; ++p)
    store_lanes(place.part(row, p), upper_halves(low.part[p], high.part[p], BothVectors{}));
}

template <>
inline void load_row_at<Split, float>(Split* row, int64_t j, const float* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kSplitLanes)
    store_at(row, j + i, from ? load_vector(from + i, n - i) : Vec<float>(0.f), n - i);
}
template <>
inline void store_row_from<float, Split>(float* to, const Split* row, int64_t j, int64_t n) {
  for (int64_t i = 0; i < n; i += kSplitLanes) store_vector(to + i, load_at(row, j + i, n - i), n - i);
}
template <>
inline void zero_row_at<Split>(Split* row, int64_t j, int64_t n) {
  load_row_at<Split, float>(row, j, nullptr, n);
}

}  // namespace
}  // namespace fused_rnn::cpu
