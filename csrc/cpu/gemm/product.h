// Matrix products on vectors: register tiles of a few rows of A times one panel of B (panels.h).
#pragma once
#include "cpu/gemm/panels.h"
#ifdef FUSED_RNN_NEON
#include "cpu/gemm/pairs.h"
#endif

namespace fused_rnn::cpu {
namespace {

// Accumulator registers of a tile.
#if defined(__AVX512F__) || defined(FUSED_RNN_BFLOAT16_PRODUCTS) || defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kRegisterSums = 24;
#elif defined(__aarch64__)  // each row's number has a register of its own
constexpr int kRegisterSums = 20;
#else
constexpr int kRegisterSums = 12;
#endif

constexpr int tile_rows(int vectors) {
  return kRegisterSums / vectors < kMostRows ? kRegisterSums / vectors : kMostRows;
}

// out[m][v] = (or +=) sum over k of rows[m][k * step] * panel[k][v]; k counts factors. Each sum has kChains independent
// accumulators: a single row has too few sums to hide the latency of multiply-adds.
template <int kRows, int kVectors, int kChains, class E>
void multiply_tile(int64_t depth, const Left<E>* const* rows, int64_t step, const E* panel, Prefetch next,
                   Arithmetic<E>* out, bool add_to_out) {
  using V = typename Vec<Arithmetic<E>>::Native;
#ifdef FUSED_RNN_NEON
  if constexpr (kRowsInPairs<E> && kRows > 1)
    return multiply_pairs<kRows, kVectors, E>(depth, rows, panel, next, out, add_to_out);
#endif
  constexpr int kLanes = Vec<Arithmetic<E>>::kLanes, kFactor = kTogether<E>;
  const Left<E>* a[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) a[m] = rows[m];
  // All indices are compile-time constants, or the sums would be spilled.
  V sum[kChains][kRows][kVectors] = {};
  const auto add = [&](int s, int64_t k) {
    if (kRows > 1) next.fetch(k);
    V b[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) b[v] = load_right<V>(panel + (k * kVectors + v) * kLanes * kFactor);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const auto x = load_lanes<Factor<Left<E>>>(a[m] + k * step * kFactor);
#pragma GCC unroll 8
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
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      V total = sum[0][m][v];
      for (int s = 1; s < kChains; ++s) total += sum[s][m][v];
      if (add_to_out) total += load_lanes<V>(out + (m * kVectors + v) * kLanes);
      store_lanes(out + (m * kVectors + v) * kLanes, total);
    }
}

template <class E>
using Tile = void (*)(int64_t depth, const Left<E>* const* rows, int64_t step, const E* panel, Prefetch next,
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
// Those for panels of so many vectors. Where `kMost` is more than kMostVectors, all panels are that wide.
template <class E, int kMost>
const Tile<E>* tiles_for(int vectors) {
  if constexpr (kMost > kMostVectors)
    return TilesOf<E, kMost>::kByRows;
  else
    return kTileFunctions<E>[vectors - 1];
}

// Prefetches a row. GCC considers a function that only prefetches pure and drops non-inlined calls: the empty asm
// prevents that.
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
  template <class Sums>
  void operator()(int64_t, int64_t, const Sums&) const {}
};
struct KeepNothing {
  std::nullptr_t operator()(int64_t) const { return nullptr; }
};

// The rows of A: `count` of them, with `step` between the elements of row(i). Rows of bfloat16 have step 1 and are
// padded with zeros to padded_depth.
template <class Row>
struct LeftRows {
  int64_t count;
  Row row;
  int64_t step = 1;
  bool single = false;  // a batch of one: the kernel that is split four ways along K
};
template <class Row>  // clang before 17 does not deduce this for aggregates
LeftRows(int64_t, Row, int64_t = 1, bool = false) -> LeftRows<Row>;

// A second product for the same panels, on tiles only: its first kShared vectors are accumulated into the sums of the
// first product; the others have their own, which come last.
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

// multiply: for some panels of a matrix (Plain in panels.h, or a type like it) and every i < count, calls the epilogue
// use(panel, i, sums), where sums[v] = sum over k of row(i)[k * step] * panel[k][v]. The order of a sum does not depend
// on other rows, so results do not depend on how rows are divided among threads; only a single row may have an order of
// its own. fetch(panel, i), called before the tile is computed, may prefetch what use(panel, i, ..) will touch. If
// results(panel), [count, vectors, L], is not null, the sums are stored there as well.
#ifndef FUSED_RNN_AMX  // amx.h has its own: a call that does not match it must not resolve to this one

// A panel, and the data to be read after it. lines(first, count): packed lines of it.
template <class E, int kMost, class Lines>
struct PanelSource {
  Lines lines;
  const E* next;
  int64_t depth;
  int vectors;
};

template <class E, int kMost, class Lines, class Row, class Fetch, class Use>
void multiply_panel(const PanelSource<E, kMost, Lines>& panel, const LeftRows<Row>& left, Fetch fetch, Use use,
                    Arithmetic<E>* results) {
  const auto& [count, row, step, single] = left;
  using T = Arithmetic<E>;
  const int vectors = panel.vectors;
  const int64_t width = vectors * Vec<T>::kLanes, line = width * kTogether<E>;
  const int64_t line_bytes = line * int64_t(sizeof(E));
  const int64_t lines = (panel.depth + kTogether<E> - 1) / kTogether<E>;
  // At least one block, so that empty sums become zeros.
  const int64_t blocks = lines > kLinesAtOnce ? (lines + kLinesAtOnce - 1) / kLinesAtOnce : 1;
  T sums[kRowsAtOnce * kMost * Vec<T>::kLanes] __attribute__((aligned(64)));
  const Tile<E>* const by_height = tiles_for<E, kMost>(vectors);
  const int64_t groups = (count + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t group = 0; group < groups; ++group) {
    const Range of_group = part_of(count, groups, group);
    // Balanced tiles: 16 rows are 6 + 5 + 5, not 6 + 6 + 4.
    const int64_t rows = of_group.count(), most = tile_rows(vectors);
    const int64_t tiles = rows <= most ? 1 : largest_part(rows, most);
    const int64_t fetch_rate = largest_part(256 * line_bytes / kCacheLine, tiles);
    for (int64_t block = 0; block < blocks; ++block) {
      const Range of_block = part_of(lines, blocks, block);
      const int64_t k0 = of_block.first, block_lines = of_block.count();
      const E* from = panel.lines(k0, block_lines);
      // Each tile prefetches a share of the next block: if that comes from beyond L2, a single tile would be too short.
      const int64_t share = largest_part(block_lines * line_bytes / kCacheLine, tiles);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Range of_tile = part_of(rows, tiles, tile);
        const int64_t height = of_tile.count(), first = of_group.first + of_tile.first;
        const Left<E>* a[kMostRows];
        for (int64_t i = 0; i < height; ++i) a[i] = row(first + i) + k0 * step * kTogether<E>;
        if (block == 0)
          for (int64_t i = 0; i < height; ++i) fetch(first + i);
        const E* coming = block + 1 < blocks ? from + block_lines * line : panel.next;
        const Prefetch next = {reinterpret_cast<const char*>(coming) + tile * share * kCacheLine, fetch_rate};
        T* out = results ? results + first * width : sums + (blocks > 1 ? of_tile.first * width : 0);
        by_height[single ? 0 : height](block_lines, a, step, from, next, out, block > 0);
        if (block + 1 < blocks) continue;
        for (int64_t i = 0; i < height; ++i) use(first + i, out + i * width);
      }
    }
  }
}

// source(panel, next) returns a PanelSource.
template <class E, class Source, class Row, class Fetch, class Use, class Results>
void multiply_panels(PanelRange panels, Source source, const LeftRows<Row>& left, Fetch fetch, Use use,
                     Results results) {
  for (int64_t n = 0; n < panels.count(); ++n) {
    const int64_t panel = panels.at(n);
    multiply_panel(
        source(panel, panels.after(n)), left, [&](int64_t i) { fetch(panel, i); },
        [&](int64_t i, const Arithmetic<E>* sums) { use(panel, i, sums); }, results(panel));
  }
}

template <class E, int kMost, class Lines>
PanelSource<E, kMost, Lines> panel_source(Lines lines, const E* next, int64_t depth, int vectors) {
  return {lines, next, depth, vectors};
}
template <class E>
int64_t line_size(int vectors) {
  return vectors * Vec<Arithmetic<E>>::kLanes * kTogether<E>;
}

template <class Matrix, class E, class Row, class Fetch, class Use, class Results = KeepNothing>
void multiply(const Matrix& matrix, const E* packed, PanelRange panels, const LeftRows<Row>& left, Fetch fetch, Use use,
              Results results = {}) {
  const auto source = [&](int64_t panel, int64_t next) {
    const int vectors = matrix.panel_vectors(panel);
    const E* const numbers = packed + matrix.offset(panel);
    return panel_source<E, Matrix::kMostOfPanel>(
        [=](int64_t first, int64_t) { return numbers + first * line_size<E>(vectors); }, packed + matrix.offset(next),
        matrix.depth, vectors);
  };
  multiply_panels<E>(panels, source, left, fetch, use, results);
}
#endif

// Some panels' columns at a time, whose sums fit L1.
template <class E, class Row, class Use>
void multiply_streamed(const Plain<E>& matrix, const RightOperand<E>& right, PanelRange panels,
                       const LeftRows<Row>& left, Use use) {
  constexpr int64_t kPanels = 16, kMostRows = RightOperand<E>::kMostStreamed;
  constexpr int64_t kStride = kPanels * kMostVectors * Vec<Arithmetic<E>>::kLanes;
  Arithmetic<E> sums[kMostRows * kStride] __attribute__((aligned(64)));
  const E* a[kMostRows];
  for (int64_t i = 0; i < left.count; ++i) a[i] = left.row(i);
  for (int64_t panel = panels.first; left.count > 0 && panel < panels.last; panel += kPanels) {
    const int64_t last = minimum(panel + kPanels, panels.last), first = matrix.first_column(panel);
    const int64_t columns = minimum(matrix.first_column(last), matrix.columns) - first;
    right.streamed[left.count - 1](sums, kStride, matrix, right.raw, first, columns, a);
    for (int64_t p = panel; p < last; ++p)
      for (int64_t i = 0; i < left.count; ++i) use(p, i, sums + i * kStride + matrix.first_column(p) - first);
  }
}

// `multiply` for a right operand that may be unpacked.
template <class E, class Row, class Fetch, class Use>
void multiply_right(const Plain<E>& matrix, const RightOperand<E>& right, PanelRange panels, const LeftRows<Row>& left,
                    Fetch fetch, Use use) {
#ifdef FUSED_RNN_AMX
  multiply(matrix, right.packed, panels, left, fetch, use);
#else
  if (right.streamed) return multiply_streamed(matrix, right, panels, left, use);
  E block[kLinesAtOnce * kMostVectors * Vec<Arithmetic<E>>::kLanes * kTogether<E>] __attribute__((aligned(64)));
  const auto source = [&](int64_t panel, int64_t next) {
    const int vectors = matrix.panel_vectors(panel);
    const auto lines = [&, panel, vectors](int64_t first, int64_t count) -> const E* {
      if (!right.raw) return right.packed + matrix.offset(panel) + first * line_size<E>(vectors);
      right.pack(block, matrix, panel, right.raw, first, count);
      return block;
    };
    return panel_source<E, kMostVectors>(lines, right.raw ? block : right.packed + matrix.offset(next), matrix.depth,
                                         vectors);
  };
  multiply_panels<E>(panels, source, left, fetch, use, KeepNothing{});
#endif
}

// ---- a product with an unpacked matrix ------------------------------------------------------------------------------

// Rows of A that share a strip of the matrix while it is in L1, and the numbers of each row that are read at a time.
constexpr int64_t kRowsOfStrip = 8, kDepthOfStrip = 256;

// L vectors of partial sums over k, for the dot products of one row of A with L rows of a matrix.
template <class E>
struct DotProducts {
  using T = Arithmetic<E>;
  static constexpr int kLanes = Vec<T>::kLanes;
  using V = typename Vec<T>::Native;
  V sum[kLanes];

  // Reduces all of them together, by zips as in `transpose`.
  FUSED_RNN_INLINE Vec<T> total() {
    using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int j = 0; j < half; ++j)
        sum[j] = zip_low(sum[j], sum[j + half], Lanes{}) + zip_high(sum[j], sum[j + half], Lanes{});
    return sum[0];
  }
};

// Adds to kRows rows of sums the products of rows of A, a[i], with rows kFirst .. kFirst + kSome - 1 of the matrix, in
// columns k .. last - 1. Two rows of A share what is loaded, and few pointers fit the registers.
template <int kFirst, int kSome, int kRows, class E, class S>
FUSED_RNN_INLINE void add_dot_products(DotProducts<E>* sums, const S* const* rows, const E* const* a, int64_t k,
                                       int64_t last) {
  using V = typename DotProducts<E>::V;
  constexpr int kLanes = DotProducts<E>::kLanes;
  V sum[kRows][kSome];
#pragma GCC unroll 2
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kSome; ++j) sum[i][j] = sums[i].sum[kFirst + j];
  for (; k + kLanes <= last; k += kLanes) {
    V x[kRows];
#pragma GCC unroll 2
    for (int i = 0; i < kRows; ++i) x[i] = load_vector(a[i] + k).v;
#pragma GCC unroll 16
    for (int j = 0; j < kSome; ++j) {
      const V b = load_vector(rows[kFirst + j] + k).v;
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i) sum[i][j] += x[i] * b;
    }
  }
  if (k < last)
#pragma GCC unroll 16
    for (int j = 0; j < kSome; ++j) {
      const V b = load_vector(rows[kFirst + j] + k, last - k).v;
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i) sum[i][j] += load_vector(a[i] + k, last - k).v * b;
    }
#pragma GCC unroll 2
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kSome; ++j) sums[i].sum[kFirst + j] = sum[i][j];
}

// f(first row, as a compile-time constant), for all L rows, kSome at a time.
template <int kLanes, int kSome, int kFirst = 0, class F>
FUSED_RNN_INLINE void by_some(F f) {
  f(std::integral_constant<int, kFirst>());
  if constexpr (kFirst + kSome < kLanes) by_some<kLanes, kSome, kFirst + kSome>(f);
}

// store(i, sum over k of from[j * depth + k] * row(i)[k]) for each of up to kRowsOfStrip rows of A, and j < columns <= L.
// kSome of these j at a time for a single row: the sums do not depend on it.
template <class E, int kSome, class S, class Row, class Store>
void multiply_strip(int64_t depth, const S* from, int64_t columns, const LeftRows<Row>& left, Store store) {
  constexpr int kLanes = DotProducts<E>::kLanes, kSomeOfTwo = kRegisterSums / 3 < kLanes ? kRegisterSums / 3 : kLanes;
  const S* rows[kLanes];
  for (int j = 0; j < kLanes; ++j) rows[j] = from + (j < columns ? j : columns - 1) * depth;
  if (left.count == 1) {
    DotProducts<E> sums = {};
    const E* const a = left.row(0);
    by_some<kLanes, kSome>([&](auto first) { add_dot_products<first(), kSome, 1>(&sums, rows, &a, 0, depth); });
    return store(0, sums.total());
  }
  DotProducts<E> sums[kRowsOfStrip] = {};
  const E* a[kRowsOfStrip];
  for (int64_t i = 0; i < left.count; ++i) a[i] = left.row(i);
  by_some<kLanes, kSomeOfTwo>([&](auto first) {
    for (int64_t k = 0; k < depth; k += kDepthOfStrip) {
      const int64_t last = minimum(depth, k + kDepthOfStrip);
      int64_t i = 0;
      for (; i + 2 <= left.count; i += 2) add_dot_products<first(), kSomeOfTwo, 2>(sums + i, rows, a + i, k, last);
      if (i < left.count) add_dot_products<first(), kSomeOfTwo, 1>(sums + i, rows, a + i, k, last);
    }
  });
  for (int64_t i = 0; i < left.count; ++i) store(i, sums[i].total());
}

}  // namespace
}  // namespace fused_rnn::cpu
