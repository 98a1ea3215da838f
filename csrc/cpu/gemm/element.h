// The elements of matrix products: numbers of the arithmetic type, or bfloat16 where the processor has instructions for
// them.
//
// Those add the products of two neighbours, so a Factor, the operand of one lane, is a pair: contiguous in a row of A,
// rows k and k + 1 of B interleaved in a panel (panels.h). Sums are float.
//
// Or a float as the sum of three bfloat16 (split.h). In a row of A the first parts of 32 neighbours are followed by
// their second and third parts, so a number has no address of its own: load_at and store_at access rows of A.
#pragma once
#include <type_traits>

#include "cpu/simd/storage.h"

#ifdef FUSED_RNN_SPLIT_PRODUCTS
namespace fused_rnn {

namespace cpu {
namespace {
struct Split {
  BFloat16 parts[3];
};
}  // namespace
}  // namespace cpu

namespace {
template <>
struct ArithmeticOf<cpu::Split> {
  using type = float;
};
}  // namespace

}  // namespace fused_rnn
#endif

namespace fused_rnn::cpu {
namespace {

template <class E>
struct FactorOf {
  using type = E;
};
struct Pair {
  BFloat16 k[2];
};
#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
template <>
struct FactorOf<BFloat16> {
  using type = Pair;
};
#endif
#ifdef FUSED_RNN_SPLIT_PRODUCTS
template <>
struct FactorOf<Split> {
  using type = Split[2];
};
#endif
template <class E>
using Factor = typename FactorOf<E>::type;

// The elements of A, where they are not those of B.
template <class E>
struct LeftOf {
  using type = E;
};
template <class E>
using Left = typename LeftOf<E>::type;

// The elements of the products of a layer whose storage type is S.
#if defined(FUSED_RNN_SPLIT_PRODUCTS)
template <class S>
using Element = Split;  // this build only has kernels for float
#elif defined(FUSED_RNN_BFLOAT16_PRODUCTS)
template <class S>
using Element = S;  // this build only has kernels for bfloat16
#else
template <class S>
using Element = Arithmetic<S>;
#endif

// Whether tiles sum two rows of A at a time (pairs.h).
#if defined(FUSED_RNN_NEON) && defined(FUSED_RNN_BFLOAT16_PRODUCTS)
template <class E>
constexpr bool kRowsInPairs = std::is_same_v<E, BFloat16>;
#else
template <class E>
constexpr bool kRowsInPairs = false;
#endif

template <class E>
constexpr int kTogether = sizeof(Factor<E>) / sizeof(E);
template <class E>
constexpr int kParts = kTogether<E> > 1 && sizeof(E) > sizeof(BFloat16) ? sizeof(E) / sizeof(BFloat16) : 1;

// Whether products run on AMX tiles.
#ifdef FUSED_RNN_AMX
template <class E>
constexpr bool kTiles = true;
#else
template <class E>
constexpr bool kTiles = false;
#endif

// Depths are zero-padded to a multiple of this, in panels and in rows of A.
template <class E>
constexpr int kDepthStep = kTiles<E> ? 32 : kTogether<E>;
template <class E>
constexpr int64_t padded_depth(int64_t depth) {
  return (depth + kDepthStep<E> - 1) / kDepthStep<E> * kDepthStep<E>;
}

// Whether a product can read rows of S in place.
template <class E, class S>
constexpr bool kReadInPlace = std::is_same_v<E, S> && kDepthStep<E> == 1;

// ---- rows of A ------------------------------------------------------------------------------------------------------

// Numbers j .. j + count - 1 of a row, at most a vector; without `count`, a whole vector.
template <class E>
FUSED_RNN_INLINE Vec<Arithmetic<E>> load_at(const E* row, int64_t j) {
  return load_vector(row + j);
}
template <class E>
FUSED_RNN_INLINE Vec<Arithmetic<E>> load_at(const E* row, int64_t j, int64_t count) {
  return load_vector(row + j, count);
}
template <class E>
FUSED_RNN_INLINE void store_at(E* row, int64_t j, Vec<Arithmetic<E>> x) {
  store_vector(row + j, x);
}
template <class E>
FUSED_RNN_INLINE void store_at(E* row, int64_t j, Vec<Arithmetic<E>> x, int64_t count) {
  store_vector(row + j, x, count);
}

// Two vectors: in bfloat16 they fill a cache line.
template <class E>
FUSED_RNN_INLINE void store_two_at(E* row, int64_t j, Vec<Arithmetic<E>> first, Vec<Arithmetic<E>> second) {
  store_two_vectors(row + j, first, second);
}

// n numbers; a null source means zeros.
template <class E, class S>
void load_row_at(E* row, int64_t j, const S* from, int64_t n) {
  load_row(row + j, from, n);
}
template <class S, class E>
void store_row_from(S* to, const E* row, int64_t j, int64_t n) {
  store_row(to, row + j, n);
}
template <class E>
void zero_row_at(E* row, int64_t j, int64_t n) {
  zero_row(row + j, n);
}
template <class E>
void fill_row_at(E* row, int64_t j, Arithmetic<E> x, int64_t n) {
  using V = Vec<Arithmetic<E>>;
  for (int64_t i = 0; i < n; i += V::kLanes) store_at(row, j + i, V(x), n - i);
}

// ---- packing --------------------------------------------------------------------------------------------------------

// A vector of factors, or of numbers, part by part.
template <class E>
struct Parts {
  typename Vec<Arithmetic<E>>::Native part[kParts<E>];
};

// `count` numbers of an unpacked row from j on, then zeros. A bfloat16 is the upper half of a lane.
template <class E, class S>
FUSED_RNN_INLINE Parts<E> load_parts(const S* row, int64_t j, int64_t count) {
  return {{load_vector(row + j, count).v}};
}

// Factors from `count` contiguous numbers, then zeros.
template <class E, class S>
FUSED_RNN_INLINE Parts<E> load_factors(const S* from, int64_t count) {
  return load_parts<E>(from, 0, count);
}

// Stores to a row of A.
template <class E>
FUSED_RNN_INLINE void store_factors(E* to, const Parts<E>& x) {
#pragma GCC unroll 3
  for (int part = 0; part < kParts<E>; ++part)
    store_lanes(reinterpret_cast<char*>(to) + part * int64_t(sizeof x.part[0]), x.part[part]);
}

// A line of a panel, from column j on: row(k) points to row k < depth of B, which has `count` columns from j on.
template <class E, class Row>
FUSED_RNN_INLINE Parts<E> load_line(Row row, int64_t line, int64_t depth, int64_t j, int64_t count) {
  const auto load_row = [&](int64_t k) { return k < depth ? load_parts<E>(row(k), j, count) : Parts<E>{}; };
  if constexpr (kTogether<E> == 1) {
    return load_row(line);
  } else {
    const Parts<E> first = load_row(2 * line), second = load_row(2 * line + 1);
    Parts<E> both;
#pragma GCC unroll 3
    for (int p = 0; p < kParts<E>; ++p)
      both.part[p] = (typename Vec<Arithmetic<E>>::Native)((Words)first.part[p] >> 16 | (Words)second.part[p]);
    return both;
  }
}

// A vector of B.
template <class V, class E>
FUSED_RNN_INLINE V load_right(const E* from) {
  return load_lanes<V>(from);
}

// sum + x * b in every lane.
template <class V, class T>
FUSED_RNN_INLINE V add_product(V sum, T x, V b) {
  return sum + x * b;
}

#if defined(FUSED_RNN_BFLOAT16_PRODUCTS) || defined(FUSED_RNN_SPLIT_PRODUCTS)
using Floats = NativeOf<float>::Vector;

FUSED_RNN_INLINE Floats add_product(Floats sum, Pair x, Floats b) {
  int both;
  memcpy(&both, &x, sizeof both);
#ifdef FUSED_RNN_NEON
  if (__builtin_constant_p(both)) asm("" : "+r"(both));  // GCC 12 takes a constant's numbers for float16
  return (Floats)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)vdupq_n_s32(both), (bfloat16x8_t)b);
#else
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)b);
#endif
}
#endif

#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
template <>
FUSED_RNN_INLINE Parts<BFloat16> load_factors<BFloat16, BFloat16>(const BFloat16* from, int64_t count) {
  BFloat16 some[2 * Vec<float>::kLanes] = {};
  if (count >= 2 * Vec<float>::kLanes) return {{load_lanes<Floats>(from)}};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i];
  return {{load_lanes<Floats>(some)}};
}
#endif

}  // namespace
}  // namespace fused_rnn::cpu

#ifdef FUSED_RNN_SPLIT_PRODUCTS
#include "cpu/gemm/split.h"
#endif
