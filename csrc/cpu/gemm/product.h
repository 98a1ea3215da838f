// The matrix product under everything: a register tile, a few rows of A times one panel of B (panels.h).
#pragma once
#include "cpu/gemm/panels.h"

namespace fused_rnn::cpu {
namespace {

// Vectors of sums that registers hold beside the operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisterSums = 24;
#else
constexpr int kRegisterSums = 12;
#endif

constexpr int tile_rows(int vectors) {
  return kRegisterSums / vectors < kMostRows ? kRegisterSums / vectors : kMostRows;
}

// Cache lines to prefetch during a tile: `rate` for each 256 k.
struct Prefetch {
  const char* from;
  int64_t rate;
};

// out[m][v] = (or +=) sum over k of rows[m][k * step] * panel[k][v]; k counts factors. Each sum is taken in kChains
// independent parts: a single row has too few sums to hide the latency of multiply-adds.
template <int kRows, int kVectors, int kChains, class E>
void multiply_tile(int64_t depth, const E* const* rows, int64_t step, const E* panel, Prefetch next, Arithmetic<E>* out,
                   bool add_to_out) {
  using V = typename Vec<Arithmetic<E>>::Native;
  constexpr int kLanes = Vec<Arithmetic<E>>::kLanes, kFactor = kTogether<E>;
  const E* a[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) a[m] = rows[m];
  // Every index is a compile-time constant: otherwise the sums would be kept in memory.
  V sum[kChains][kRows][kVectors] = {};
  const auto add = [&](int s, int64_t k) {
    if (kRows > 1) __builtin_prefetch(next.from + (k * next.rate >> 8) * kCacheLine, 0, 2);
    V b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) b[v] = load_lanes<V>(panel + (k * kVectors + v) * kLanes * kFactor);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const auto x = load_lanes<Factor<E>>(a[m] + k * step * kFactor);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[s][m][v] = add_product(sum[s][m][v], x, b[v]);
    }
  };
  int64_t k = 0;
  for (; k + kChains <= depth; k += kChains) {
#pragma GCC unroll 4
    for (int s = 0; s < kChains; ++s) add(s, k + s);
  }
  for (; k < depth; ++k) add(0, k);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V total = sum[0][m][v];
      for (int s = 1; s < kChains; ++s) total += sum[s][m][v];
      if (add_to_out) total += load_lanes<V>(out + (m * kVectors + v) * kLanes);
      store_lanes(out + (m * kVectors + v) * kLanes, total);
    }
}

template <class E>
using Tile = void (*)(int64_t depth, const E* const* rows, int64_t step, const E* panel, Prefetch next,
                      Arithmetic<E>* out, bool add_to_out);

// Tiles of 1 .. tile_rows(kVectors) rows; the first entry is for a batch of one, split four ways along K.
template <class E, int kVectors, class Rows = std::make_integer_sequence<int, tile_rows(kVectors)>>
struct TilesOf;
template <class E, int kVectors, int... kRow>
struct TilesOf<E, kVectors, std::integer_sequence<int, kRow...>> {
  static constexpr Tile<E> kByRows[] = {&multiply_tile<1, kVectors, 4, E>, &multiply_tile<kRow + 1, kVectors, 1, E>...};
};
template <class E>
constexpr const Tile<E>* kTileFunctions[kMostVectors] = {TilesOf<E, 1>::kByRows, TilesOf<E, 2>::kByRows,
                                                         TilesOf<E, 3>::kByRows, TilesOf<E, 4>::kByRows};

// Prefetches a row. GCC takes a function that only prefetches for one without effects, and drops its calls wherever it
// does not inline it: the asm, of no instructions, is an effect.
template <class S>
void fetch_row(const S* from, int64_t count) {
  for (int64_t i = 0; i < count; i += kCacheLine / int64_t(sizeof(S))) __builtin_prefetch(from + i);
  asm volatile("");
}
template <class S>
void fetch_row_to_write(S* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kCacheLine / int64_t(sizeof(S))) __builtin_prefetch(to + i, 1);
  asm volatile("");
}
struct FetchNothing {
  void operator()(int64_t, int64_t) const {}
};
struct UseNothing {
  template <class T>
  void operator()(int64_t, int64_t, const T*) const {}
};
struct KeepNothing {
  std::nullptr_t operator()(int64_t) const { return nullptr; }
};

// The rows of A that a product takes: `count` of them, the numbers of row(i) `step` apart. Of bfloat16 the step is 1,
// and rows are padded with zeros up to padded_depth.
template <class Row>
struct LeftRows {
  int64_t count;
  Row row;
  int64_t step = 1;
  bool lone = false;  // a batch of one: the kernel that is split four ways along K
};
template <class Row>  // clang before 17 makes no guide from the members
LeftRows(int64_t, Row, int64_t = 1, bool = false) -> LeftRows<Row>;

// A second product for the same panels, on tiles only: its first kShared vectors are accumulated into the sums of the
// first product, those after them have sums of their own, which come last.
template <int kShared, class Matrix, class E, class Row>
struct Second {
  Matrix matrix;
  const E* packed;
  Row row;

  int64_t depth() const { return padded_depth<E>(matrix.depth); }
  template <int kVectors>
  static constexpr int shared() {
    return kShared < kVectors ? kShared : kVectors;
  }
  template <int kVectors, int... kVector>
  static constexpr auto sums(std::integer_sequence<int, kVector...>) {
    return std::integer_sequence<int, (kVector < kShared ? kVector : kVectors + kVector - kShared)...>{};
  }
};
struct NoSecond {
  int64_t depth() const { return 0; }
  template <int kVectors>
  static constexpr int shared() {
    return kVectors;
  }
};

// multiply: for some panels of a matrix (Plain, panels.h, or one like it) and every i < count, use(panel, i, sums),
// where sums[v] = sum over k of row(i)[k * step] * panel[k][v]. Each sum has one order whatever the other rows are, so
// results do not depend on how rows were divided among threads; only a lone row may be summed in another. Before that
// fetch(panel, i) may prefetch what use(panel, i, ..) will touch, which then arrives while the tile is computed. Where
// results(panel), [count, vectors, L], is not null, the sums are left there as well.
#ifndef FUSED_RNN_AMX  // there amx.h has the only one: a call that does not fit it must not end up here

// A panel, and the one that will be read after it. `lines(first, count)`: some lines of it, packed.
template <class E, class Lines>
struct PanelInTurn {
  Lines lines;
  const E* next;
  int64_t depth;
  int vectors;
};

template <class E, class Lines, class Row, class Fetch, class Use>
void multiply_panel(const PanelInTurn<E, Lines>& panel, const LeftRows<Row>& left, Fetch fetch, Use use,
                    Arithmetic<E>* results) {
  // Each tile prefetches a part of what comes next: when it comes from beyond L2, one tile alone would have to wait.
  const auto& [count, row, step, lone] = left;
  using T = Arithmetic<E>;
  const int vectors = panel.vectors;
  const int64_t width = vectors * Vec<T>::kLanes, line = width * kTogether<E>;
  const int64_t lines = (panel.depth + kTogether<E> - 1) / kTogether<E>;
  // At least one block: sums of nothing are zeros.
  const int64_t blocks = lines > kLinesAtOnce ? (lines + kLinesAtOnce - 1) / kLinesAtOnce : 1;
  T sums[kRowsAtOnce * kMostVectors * Vec<T>::kLanes] __attribute__((aligned(64)));
  const Tile<E>* const by_rows = kTileFunctions<E>[vectors - 1];
  const int64_t groups = (count + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = count * group / groups, rows = count * (group + 1) / groups - first;
    // Tiles of even heights: 16 rows are 6 + 5 + 5, not 6 + 6 + 4.
    const int64_t most = tile_rows(vectors), tiles = (rows + most - 1) / most;
    const int64_t fetch_rate = (vectors * 256 + tiles - 1) / tiles;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k0 = lines * block / blocks, deep = lines * (block + 1) / blocks - k0;
      const E* from = panel.lines(k0, deep);
      // A tile's share of what comes after this block, which is as large as the block.
      const int64_t share = (deep * vectors + tiles - 1) / tiles;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t i0 = rows * tile / tiles, height = rows * (tile + 1) / tiles - i0;
        const E* a[kMostRows];
        for (int64_t i = 0; i < height; ++i) a[i] = row(first + i0 + i) + k0 * step * kTogether<E>;
        if (block == 0)
          for (int64_t i = 0; i < height; ++i) fetch(first + i0 + i);
        const E* coming = block + 1 < blocks ? from + deep * line : panel.next;
        const Prefetch next = {reinterpret_cast<const char*>(coming) + tile * share * kCacheLine, fetch_rate};
        T* out = results ? results + (first + i0) * width : sums + (blocks > 1 ? i0 * width : 0);
        by_rows[lone ? 0 : height](deep, a, step, from, next, out, block > 0);
        if (block + 1 < blocks) continue;
        for (int64_t i = 0; i < height; ++i) use(first + i0 + i, out + i * width);
      }
    }
  }
}

// in_turn(panel, next): the panel as a PanelInTurn.
template <class E, class InTurn, class Row, class Fetch, class Use, class Results>
void multiply_panels(PanelRange panels, InTurn in_turn, const LeftRows<Row>& left, Fetch fetch, Use use,
                     Results results) {
  for (int64_t n = 0; n < panels.count(); ++n) {
    const int64_t panel = panels.at(n);
    multiply_panel(
        in_turn(panel, panels.after(n)), left, [&](int64_t i) { fetch(panel, i); },
        [&](int64_t i, const Arithmetic<E>* sums) { use(panel, i, sums); }, results(panel));
  }
}

template <class E, class Lines>
PanelInTurn<E, Lines> panel_in_turn(Lines lines, const E* next, int64_t depth, int vectors) {
  return {lines, next, depth, vectors};
}
template <class E>
int64_t line_size(int vectors) {
  return vectors * Vec<Arithmetic<E>>::kLanes * kTogether<E>;
}

template <class Matrix, class E, class Row, class Fetch, class Use, class Results = KeepNothing>
void multiply(const Matrix& matrix, const E* packed, PanelRange panels, const LeftRows<Row>& left, Fetch fetch, Use use,
              Results results = {}) {
  const auto in_turn = [&](int64_t panel, int64_t next) {
    const int vectors = matrix.panel_vectors(panel);
    const E* const numbers = packed + matrix.offset(panel);
    return panel_in_turn([=](int64_t first, int64_t) { return numbers + first * line_size<E>(vectors); },
                         packed + matrix.offset(next), matrix.depth, vectors);
  };
  multiply_panels<E>(panels, in_turn, left, fetch, use, results);
}
#endif

// `multiply` for a right operand that may not be packed yet.
template <class E, class Row, class Fetch, class Use>
void multiply_right(const Plain<E>& matrix, const RightOperand<E>& right, PanelRange panels, const LeftRows<Row>& left,
                    Fetch fetch, Use use) {
#ifdef FUSED_RNN_AMX
  multiply(matrix, right.packed, panels, left, fetch, use);
#else
  E block[kLinesAtOnce * kMostVectors * Vec<Arithmetic<E>>::kLanes * kTogether<E>] __attribute__((aligned(64)));
  const auto in_turn = [&](int64_t panel, int64_t next) {
    const int vectors = matrix.panel_vectors(panel);
    const auto lines = [&, panel, vectors](int64_t first, int64_t count) -> const E* {
      if (!right.raw) return right.packed + matrix.offset(panel) + first * line_size<E>(vectors);
      right.pack(block, matrix, panel, right.raw, first, count);
      return block;
    };
    return panel_in_turn(lines, right.raw ? block : right.packed + matrix.offset(next), matrix.depth, vectors);
  };
  multiply_panels<E>(panels, in_turn, left, fetch, use, KeepNothing{});
#endif
}

// ---- a product with a matrix as it lies in memory -------------------------------------------------------------------

// sum over k of from[j * lead + k] * a[k], for j < columns <= L. L vectors of partial sums are reduced together by
// zips, as in `transpose`.
template <class E, class S>
Vec<Arithmetic<E>> dot_products(int64_t depth, const S* from, int64_t lead, int64_t columns, const E* a) {
  using T = Arithmetic<E>;
  constexpr int kLanes = Vec<T>::kLanes;
  using Lanes = std::make_integer_sequence<int, kLanes>;
  using V = typename Vec<T>::Native;
  const S* rows[kLanes];
  for (int j = 0; j < kLanes; ++j) rows[j] = from + (j < columns ? j : columns - 1) * lead;
  V sum[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    const V x = load_vector(a + k).v;
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) sum[j] += x * load_vector(rows[j] + k).v;
  }
  if (k < depth) {
    const V x = load_vector(a + k, depth - k).v;
    for (int j = 0; j < kLanes; ++j) sum[j] += x * load_vector(rows[j] + k, depth - k).v;
  }
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int j = 0; j < half; ++j)
      sum[j] = zip_low(sum[j], sum[j + half], Lanes{}) + zip_high(sum[j], sum[j + half], Lanes{});
  return sum[0];
}

}  // namespace
}  // namespace fused_rnn::cpu
