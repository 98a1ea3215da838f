// What a product multiplies: numbers of the arithmetic type, or bfloat16 where the processor multiplies those itself.
//
// It sums the products of two neighbours at once, so two of them, a Factor, take the place of one float: in a row of A
// they lie side by side as they are, in a panel (product.h) the rows k and k + 1 of B are zipped together. Sums are
// float.
#pragma once
#include "storage.h"

namespace fused_rnn {
namespace {

template <class E>
struct FactorOf {
  using type = E;
};
#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
struct Pair {
  BFloat16 k[2];
};
template <>
struct FactorOf<BFloat16> {
  using type = Pair;
};
#endif
template <class E>
using Factor = typename FactorOf<E>::type;

// The elements that a layer stored as S multiplies.
#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
template <class S>
using Element = S;  // such a build has kernels for bfloat16 alone
#else
template <class S>
using Element = Arithmetic<S>;
#endif

template <class E>
constexpr int kTogether = sizeof(Factor<E>) / sizeof(E);

// Depths are filled up with zeros to a multiple of this: in panels, and in the rows that meet them.
#ifdef FUSED_RNN_AMX
template <class E>
constexpr int kDepthStep = 32;
#else
template <class E>
constexpr int kDepthStep = kTogether<E>;
#endif
template <class E>
constexpr int64_t padded_depth(int64_t depth) {
  return (depth + kDepthStep<E> - 1) / kDepthStep<E> * kDepthStep<E>;
}

// sum + x * b in every lane.
template <class V, class T>
FUSED_RNN_INLINE V add_product(V sum, T x, V b) {
  return sum + x * b;
}

// Factors from memory: the first `count` numbers from `from` on as they lie there, whatever follows as zeros.
template <class E, class S>
FUSED_RNN_INLINE Vec<Arithmetic<E>> load_factors(const S* from, int64_t count) {
  return load_vector(from, count);
}

// Columns j .. of line `line` of a panel: row(k) is where row k < depth of B begins; `count` columns are left there.
template <class E, class Row>
FUSED_RNN_INLINE Vec<Arithmetic<E>> load_line(Row row, int64_t line, int64_t depth, int64_t j, int64_t count) {
  using V = Vec<Arithmetic<E>>;
  const auto load_row = [&](int64_t k) { return k < depth ? load_vector(row(k) + j, count) : V(Arithmetic<E>(0)); };
  if constexpr (kTogether<E> == 1) {
    return load_row(line);
  } else {  // as floats they are the upper halves of words
    const Words first = (Words)load_row(2 * line).v, second = (Words)load_row(2 * line + 1).v;
    return V((typename V::Native)(first >> 16 | second));
  }
}

#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
using Floats = NativeOf<float>::Vector;

FUSED_RNN_INLINE Floats add_product(Floats sum, Pair x, Floats b) {
  int both;
  memcpy(&both, &x, sizeof both);
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)b);
}

template <>
FUSED_RNN_INLINE Vec<float> load_factors<BFloat16, BFloat16>(const BFloat16* from, int64_t count) {
  BFloat16 some[2 * Vec<float>::kLanes] = {};
  if (count >= 2 * Vec<float>::kLanes) return Vec<float>(load_lanes<Floats>(from));
  for (int64_t i = 0; i < count; ++i) some[i] = from[i];
  return Vec<float>(load_lanes<Floats>(some));
}
#endif

}  // namespace
}  // namespace fused_rnn
