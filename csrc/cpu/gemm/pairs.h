// Register tiles by the instructions of ARM that multiply matrices: SMMLA and BFMMLA.
//
// Such an instruction adds to 2 x 2 sums the products of two rows of A with two columns of B, eight bytes of each: two
// factors (element.h). Two lines of a panel become its operands by a zip; sums become rows of vectors at the end:
//
//   lines     c0 c1 c2 c3 | c0' c1' c2' c3'        operands     c0 c0' c1 c1' | c2 c2' c3 c3'
//
// The order of a sum is the one of dot products line by line, and so are its bits.
#pragma once
#include "cpu/gemm/panels.h"

namespace fused_rnn::cpu {
namespace {

#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
FUSED_RNN_INLINE float32x4_t add_square(float32x4_t sum, uint32x4_t a, uint32x4_t b) {
  return vbfmmlaq_f32(sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
FUSED_RNN_INLINE int32x4_t add_square(int32x4_t sum, uint32x4_t a, uint32x4_t b) {
  return vmmlaq_s32(sum, (int8x16_t)a, (int8x16_t)b);
}
#endif

// multiply_tile (product.h) of two rows or more; an odd one is its own neighbour.
template <int kRows, int kVectors, class E>
void multiply_pairs(int64_t depth, const Left<E>* const* rows, const E* panel, Prefetch next, Arithmetic<E>* out,
                    bool add_to_out) {
  using V = typename Vec<Arithmetic<E>>::Native;
  constexpr int kPairs = (kRows + 1) / 2, kLanes = Vec<Arithmetic<E>>::kLanes, kFactor = kTogether<E>;
  static_assert(sizeof(Factor<E>) == sizeof(uint32_t) && kLanes == 4);
  const Left<E>* a[2 * kPairs];
#pragma GCC unroll 16
  for (int m = 0; m < 2 * kPairs; ++m) a[m] = rows[m < kRows ? m : kRows - 1];
  V sum[kPairs][kVectors][2] = {};
  const auto vector_of = [&](int64_t k, int v) {
    return load_lanes<uint32x4_t>(panel + (k * kVectors + v) * kLanes * kFactor);
  };
  // left(m): two factors of row m, from factor k on; has_next: whether there is a line k + 1.
  const auto add = [&](int64_t k, auto left, auto has_next) {
    uint32x4_t both[kPairs];
#pragma GCC unroll 16
    for (int p = 0; p < kPairs; ++p) both[p] = (uint32x4_t)vcombine_u64(left(2 * p), left(2 * p + 1));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const uint32x4_t first = vector_of(k, v);
      const uint32x4_t second = decltype(has_next)::value ? vector_of(k + 1, v) : uint32x4_t{};
      const uint32x4_t low = vzip1q_u32(first, second), high = vzip2q_u32(first, second);
#pragma GCC unroll 16
      for (int p = 0; p < kPairs; ++p) {
        sum[p][v][0] = (V)add_square(sum[p][v][0], both[p], low);
        sum[p][v][1] = (V)add_square(sum[p][v][1], both[p], high);
      }
    }
  };
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    next.fetch(k);
    add(k, [&](int m) { return load_lanes<uint64x1_t>(a[m] + k * kFactor); }, std::true_type());
  }
  if (k < depth)
    add(k, [&](int m) { return vcreate_u64(load_lanes<uint32_t>(a[m] + k * kFactor)); }, std::false_type());
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const uint64x2_t low = (uint64x2_t)sum[m / 2][v][0], high = (uint64x2_t)sum[m / 2][v][1];
      V total = (V)(m % 2 ? vzip2q_u64(low, high) : vzip1q_u64(low, high));
      if (add_to_out) total += load_lanes<V>(out + (m * kVectors + v) * kLanes);
      store_lanes(out + (m * kVectors + v) * kLanes, total);
    }
}

}  // namespace
}  // namespace fused_rnn::cpu
