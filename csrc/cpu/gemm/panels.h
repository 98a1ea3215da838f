// Packed right operands.
//
// B, [depth, columns], is packed once into panels of a few vectors of columns, the last one padded with zeros:
//
//             vector 0        vector 1     ...                      a panel is read sequentially, one line of vectors
//   k = 0     B[0][0..L)      B[0][L..2L)                           per k: each is multiplied by one element of each
//   k = 1     B[1][0..L)      B[1][L..2L)                           row of A
//   ...
//
// For bfloat16 products a lane holds a Factor, a pair of numbers (element.h), so a line covers two k. For AMX tiles the
// 16 lines of 32 k are contiguous, 1 KB for each vector, or for each part of it (split.h). The depth is zero-padded
// too. The order of columns is the packer's choice: for the gates (passes/forward/panels.h) all gates of the same units
// are in one panel, so that the cell can be its epilogue.
#pragma once
#include <utility>

#include "cpu/gemm/element.h"
#include "cpu/schedule/tuning.h"

namespace fused_rnn::cpu {
namespace {

constexpr int64_t kCacheLine = 64;

// A contiguous range of rows, panels or columns.
struct Range {
  int64_t first, last;

  int64_t count() const { return last - first; }
};

// Part i of [0, n) split evenly into `parts`, and the size of the largest. The usual single part needs no division: a
// step of a small layer takes no longer than ten of them.
FUSED_RNN_INLINE Range part_of(int64_t n, int64_t parts, int64_t i) {
  if (parts == 1) return {0, n};
  return {n * i / parts, n * (i + 1) / parts};
}
FUSED_RNN_INLINE int64_t largest_part(int64_t n, int64_t parts) { return parts == 1 ? n : (n + parts - 1) / parts; }

// Some panels, forwards or backwards. Repeated sweeps should alternate their direction: the last panels are still
// cached.
struct PanelRange {
  int64_t first, last;
  bool back = false;

  int64_t count() const { return last - first; }
  int64_t at(int64_t i) const { return back ? last - 1 - i : first + i; }
  int64_t after(int64_t i) const { return at(i + 1 < count() ? i + 1 : i); }  // the next sweep turns round
};

// Direction of the next sweep through the weights (true: backwards): alternates, also from call to call.
inline bool next_direction() {
  static thread_local bool back = true;
  return back = !back;
}

// Cache lines to prefetch during a register tile: `rate` per 256 k.
struct Prefetch {
  const char* from;
  int64_t rate;

  FUSED_RNN_INLINE void fetch(int64_t k) const { __builtin_prefetch(from + (k * rate >> 8) * kCacheLine, 0, 2); }
};

// One part of vector v in a line of a panel of `vectors` vectors.
template <class E>  // const or not
FUSED_RNN_INLINE auto* vector_at(E* panel, int vectors, int v, int64_t line, int part) {
  using Plain = std::remove_const_t<E>;
  using Byte = std::conditional_t<std::is_const_v<E>, const char, char>;
  using V = Vec<Arithmetic<Plain>>;
  constexpr int64_t kLines = kDepthStep<Plain> / kTogether<Plain>;
  const int64_t group = (line / kLines * vectors + v) * kParts<Plain> + part;
  return reinterpret_cast<Byte*>(panel) + (group * kLines + line % kLines) * int64_t(sizeof(V));
}
template <class E>
FUSED_RNN_INLINE void store_line(E* panel, int vectors, int v, int64_t line, const Parts<E>& x) {
#pragma GCC unroll 3
  for (int part = 0; part < kParts<E>; ++part) store_lanes(vector_at(panel, vectors, v, line, part), x.part[part]);
}

template <class V, int... kLane>
V zip_low(V a, V b, std::integer_sequence<int, kLane...>) {
  constexpr int n = sizeof...(kLane);
  return __builtin_shufflevector(a, b, (kLane % 2 * n + kLane / 2)...);
}
template <class V, int... kLane>
V zip_high(V a, V b, std::integer_sequence<int, kLane...>) {
  constexpr int n = sizeof...(kLane);
  return __builtin_shufflevector(a, b, (kLane % 2 * n + n / 2 + kLane / 2)...);
}

// Transposes in place: log2(L) rounds, each of which zips pairs of rows L / 2 apart.
template <class T>
void transpose(typename Vec<T>::Native (&rows)[Vec<T>::kLanes]) {
  constexpr int kLanes = Vec<T>::kLanes;
  using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    typename Vec<T>::Native zipped[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + kLanes / 2], Lanes{});
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + kLanes / 2], Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = zipped[i];
  }
}

// L vectors of factors, part by part.
template <class E>
struct Square {
  static constexpr int kLanes = Vec<Arithmetic<E>>::kLanes;
  typename Vec<Arithmetic<E>>::Native rows[kParts<E>][kLanes];

  FUSED_RNN_INLINE void set_row(int64_t i, const Parts<E>& x) {
#pragma GCC unroll 3
    for (int part = 0; part < kParts<E>; ++part) rows[part][i] = x.part[part];
  }
  FUSED_RNN_INLINE Parts<E> row(int64_t i) const {
    Parts<E> x;
#pragma GCC unroll 3
    for (int part = 0; part < kParts<E>; ++part) x.part[part] = rows[part][i];
    return x;
  }
  // Adds the column sums. For bfloat16 products.
  FUSED_RNN_INLINE Vec<Arithmetic<E>> add_rows_to(Vec<Arithmetic<E>> sums) const {
    constexpr uint16_t kOne = 0x3f80;
#pragma GCC unroll 3
    for (int part = kParts<E> - 1; part >= 0; --part)
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) sums.v = add_product(sums.v, Pair{{{kOne}, {kOne}}}, rows[part][i]);
    return sums;
  }
  FUSED_RNN_INLINE void transpose() {
#pragma GCC unroll 3
    for (int part = 0; part < kParts<E>; ++part) cpu::transpose<Arithmetic<E>>(rows[part]);
  }
};

// Vector v of a panel of `vectors` vectors, from `columns` <= L rows of B's transpose, [columns, depth], row-major: lines
// first .. first + count - 1 of it.
template <class E, class S>
void pack_transposed(E* to, int vectors, int v, int64_t depth, const S* from, int64_t columns, int64_t first,
                     int64_t count) {
  constexpr int kLanes = Vec<Arithmetic<E>>::kLanes;
  for (int64_t line = 0; line < count; line += kLanes) {
    const int64_t k = (first + line) * kTogether<E>, some = count - line < kLanes ? count - line : kLanes;
    Square<E> square;
    for (int j = 0; j < kLanes; ++j)
      square.set_row(j, j < columns ? load_factors<E>(from + j * depth + k, depth - k) : Parts<E>{});
    square.transpose();
    for (int64_t i = 0; i < some; ++i) store_line(to, vectors, v, line + i, square.row(i));
  }
}
template <class E, class S>
void pack_transposed(E* panel, int vectors, int v, int64_t depth, const S* from, int64_t columns) {
  pack_transposed(panel, vectors, v, depth, from, columns, 0, padded_depth<E>(depth) / kTogether<E>);
}

// Row k of a panel, as numbers.
template <class E>
void load_panel_row(Arithmetic<E>* to, const E* panel, int vectors, int64_t k) {
  using V = Vec<Arithmetic<E>>;
  for (int v = 0; v < vectors; ++v) {
    V sum(Arithmetic<E>(0));
    for (int part = kParts<E> - 1; part >= 0; --part) {
      const auto lanes = load_lanes<typename V::Native>(vector_at(panel, vectors, v, k / kTogether<E>, part));
      if constexpr (kTogether<E> == 1)
        sum = sum + V(lanes);
      else  // one of the pair in a lane
        sum = sum + V((typename V::Native)(k % 2 ? (Words)lanes >> 16 << 16 : (Words)lanes << 16));
    }
    store_vector(to + v * V::kLanes, sum);
  }
}

// A matrix whose panels hold its columns in order, kMostVectors vectors each; the last panel has the remainder.
template <class E>
struct Plain {
  static constexpr int64_t kLanes = Vec<Arithmetic<E>>::kLanes;
  static constexpr int kVectorsTogether = 1;  // a panel has a multiple of these
  static constexpr int kMostOfPanel = kMostVectors;
  int64_t depth, columns;

  int64_t vectors() const { return (columns + kLanes - 1) / kLanes; }
  int64_t panels() const { return (vectors() + kMostVectors - 1) / kMostVectors; }
  int64_t size() const { return vectors() * kLanes * padded_depth<E>(depth); }
  int panel_vectors(int64_t panel) const {
    const int64_t left = vectors() - panel * kMostVectors;
    return int(left < kMostVectors ? left : kMostVectors);
  }
  int64_t first_column(int64_t panel) const { return panel * kMostVectors * kLanes; }
  int64_t offset(int64_t panel) const { return first_column(panel) * padded_depth<E>(depth); }

  // row(k) points to row k of the matrix.
  template <class Row>
  void pack(E* packed, int64_t panel, Row row) const {
    const int vectors = panel_vectors(panel);
    const int64_t first = first_column(panel);
    for (int64_t line = 0; line < padded_depth<E>(depth) / kTogether<E>; ++line)
      for (int v = 0; v < vectors; ++v) {
        const int64_t j = first + v * kLanes;
        store_line(packed + offset(panel), vectors, v, line, load_line<E>(row, line, depth, j, columns - j));
      }
  }
  template <class S>
  void pack_transpose_of(E* packed, int64_t panel, const S* from) const {
    const int vectors = panel_vectors(panel);
    for (int v = 0; v < vectors; ++v) {
      const int64_t j = first_column(panel) + v * kLanes;
      pack_transposed(packed + offset(panel), vectors, v, depth, from + j * depth, columns - j);
    }
  }
};

constexpr int64_t kRowsAhead = 16;  // to prefetch

// Packs lines first .. first + lines - 1 of a panel of a row-major [depth, columns].
template <class E, class S>
void pack_lines(E* to, const Plain<E>& matrix, int64_t panel, const void* from, int64_t first, int64_t lines) {
  const int vectors = matrix.panel_vectors(panel);
  const S* const rows = static_cast<const S*>(from);
  const auto row = [&](int64_t k) { return rows + k * matrix.columns; };
  for (int64_t line = 0; line < lines; ++line)
    for (int v = 0; v < vectors; ++v) {
      const int64_t j = matrix.first_column(panel) + v * Plain<E>::kLanes;
      // Few lines of each row: no processor foresees these.
      __builtin_prefetch(rows + (first + line + kRowsAhead) * kTogether<E> * matrix.columns + j);
      store_line(to, vectors, v, line, load_line<E>(row, first + line, matrix.depth, j, matrix.columns - j));
    }
}

// Adds to kRows rows of sums, `stride` apart, the products of A's columns k .. k + kDepth - 1 with those rows of B.
template <class E, class S, int kRows, int kDepth>
void add_streamed(Arithmetic<E>* sums, int64_t stride, const S* b, int64_t ld, int64_t columns, const E* const* a,
                  int64_t k) {
  using V = Vec<Arithmetic<E>>;
  V factor[kRows][kDepth];
  for (int i = 0; i < kRows; ++i)
    for (int n = 0; n < kDepth; ++n) factor[i][n] = V(load(a[i][k + n]));
  for (int64_t j = 0; j < columns; j += V::kLanes) {
    V x[kDepth];
#pragma GCC unroll 4
    for (int n = 0; n < kDepth; ++n) x[n] = load_vector(b + (k + n) * ld + j, columns - j);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      V sum = load_vector(sums + i * stride + j);
#pragma GCC unroll 4
      for (int n = 0; n < kDepth; ++n) sum = sum + factor[i][n] * x[n];
      store_vector(sums + i * stride + j, sum);
    }
  }
}

// Few rows of A times some columns of a row-major B, which is streamed row by row while the sums stay in L1.
template <class E, class S, int kRows>
void multiply_streamed(Arithmetic<E>* sums, int64_t stride, const Plain<E>& matrix, const void* from, int64_t first,
                       int64_t columns, const E* const* a) {
  constexpr int kDepth = 4;
  const S* const b = static_cast<const S*>(from) + first;
  zero_row(sums, kRows * stride);
  int64_t k = 0;
  for (; k + kDepth <= matrix.depth; k += kDepth)
    add_streamed<E, S, kRows, kDepth>(sums, stride, b, matrix.columns, columns, a, k);
  for (; k < matrix.depth; ++k) add_streamed<E, S, kRows, 1>(sums, stride, b, matrix.columns, columns, a, k);
}

template <class E>
using MultiplyStreamed = void (*)(Arithmetic<E>* sums, int64_t stride, const Plain<E>& matrix, const void* from,
                                  int64_t first, int64_t columns, const E* const* a);

// B of a product: packed, or row-major (`raw`): then packed block by block during the product or, for few rows of A,
// streamed.
template <class E>
struct RightOperand {
  static constexpr int kMostStreamed = 4;  // rows of A

  const E* packed;
  const void* raw = nullptr;
  void (*pack)(E* to, const Plain<E>& matrix, int64_t panel, const void* from, int64_t first, int64_t lines) = nullptr;
  const MultiplyStreamed<E>* streamed = nullptr;  // for 1 .. kMostStreamed rows

  static RightOperand of_packed(const E* packed) { return {packed}; }
  template <class S>
  static RightOperand of_rows(const S* raw) {
    RightOperand right = {nullptr, raw, &pack_lines<E, S>};
    if constexpr (kTogether<E> == 1) {
      static constexpr MultiplyStreamed<E> kStreamed[kMostStreamed] = {
          &multiply_streamed<E, S, 1>, &multiply_streamed<E, S, 2>, &multiply_streamed<E, S, 3>,
          &multiply_streamed<E, S, 4>};
      right.streamed = kStreamed;
    }
    return right;
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
