// Called by test_product.py: csrc/cpu/gemm/product.h against plain loops. Each function returns what is wrong, or null.
//
// Numbers are small integers, so that every sum is exact and must be equal.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "checking.h"
#include "cpu/gemm/product.h"

namespace fused_rnn::cpu {
namespace {

// Sizes around those of vectors, tiles, blocks of depth and groups of rows.
int64_t some_depth(int64_t lanes) {
  const int64_t sizes[] = {0, 1, 2, 3, lanes - 1, lanes, lanes + 1, between(1, 70), 511, 512, 513, between(500, 1300)};
  return sizes[between(0, 11)];
}
int64_t some_rows() {
  const int64_t sizes[] = {1, 2, between(1, 13), between(1, 13), between(1, 30), 95, 96, 97, between(90, 200)};
  return sizes[between(0, 8)];
}

template <class T>
const char* check_multiply(int64_t cases) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t depth = some_depth(kLanes), count = n % 50 == 0 ? 0 : some_rows();
    const int vectors = int(between(1, kMostVectors));
    const int64_t width = vectors * kLanes;
    const bool lone = count == 1 && between(0, 1), transposed = between(0, 1);
    // A by rows, whose stride may exceed their length; or by columns, read with a stride.
    const int64_t lead = transposed ? count + between(0, 3) : depth + between(0, 3), step = transposed ? lead : 1;
    const int64_t size = transposed  ? depth > 0 ? (depth - 1) * lead + count : 0
                         : count > 0 ? (count - 1) * lead + depth
                                     : 0;
    Guarded<T> a(size), panel(depth * width);
    a.fill_with_integers();
    panel.fill_with_integers();
    const auto row = [&](int64_t i) -> const T* { return a.data() + i * (transposed ? 1 : lead); };
    int64_t next = 0;
    bool in_order = true, equal = true;
    const auto use = [&](int64_t, int64_t i, const T* sums) {
      in_order = in_order && i == next++;
      for (int64_t j = 0; j < width; ++j) {
        T expected = 0;
        for (int64_t k = 0; k < depth; ++k) expected += row(i)[k * step] * panel[k * width + j];
        equal = equal && sums[j] == expected;
      }
    };
    multiply(Plain<T>{depth, width}, panel.data(), PanelRange{0, 1}, LeftRows{count, row, step, lone}, FetchNothing{},
             use);
    CHECK(in_order && next == count, "%ld of %ld rows were used, or in another order", long(next), long(count));
    CHECK(equal, "wrong sum: depth %ld, %ld rows, %d vectors, lone %d, step %ld", long(depth), long(count), vectors,
          lone, long(step));
  }
  return nullptr;
}

// A row's sums have the same bits whichever rows it is computed with.
template <class T>
const char* check_order(int64_t cases) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t depth = some_depth(kLanes), count = some_rows();
    const int vectors = int(between(1, kMostVectors));
    const int64_t width = vectors * kLanes;
    Guarded<T> a(count * depth), panel(depth * width);
    a.fill_with_fractions();
    panel.fill_with_fractions();
    std::vector<T> together(count * width), apart(count * width);
    const auto run = [&](int64_t first, int64_t rows, std::vector<T>& to) {
      const auto row = [&](int64_t i) -> const T* { return a.data() + (first + i) * depth; };
      multiply(Plain<T>{depth, width}, panel.data(), PanelRange{0, 1}, LeftRows{rows, row}, FetchNothing{},
               [&](int64_t, int64_t i, const T* sums) { memcpy(&to[(first + i) * width], sums, width * sizeof(T)); });
    };
    run(0, count, together);
    for (int64_t first = 0, rows; first < count; first += rows) {
      rows = between(1, count - first);
      run(first, rows, apart);
    }
    CHECK(memcmp(together.data(), apart.data(), count * width * sizeof(T)) == 0,
          "other bits when rows are dealt otherwise: depth %ld, %ld rows, %d vectors", long(depth), long(count),
          vectors);
  }
  return nullptr;
}

// Both of the above for products of bfloat16: rows of pairs, whose depth is padded with zeros. A row alone is multiplied
// by dot products, on ARM, and rows together by matrices.
#ifdef FUSED_RNN_BFLOAT16_PRODUCTS
const char* check_bfloat16(int64_t cases, bool exact) {
  using E = BFloat16;
  constexpr int64_t kLanes = Vec<float>::kLanes;
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t depth = some_depth(kLanes), padded = padded_depth<E>(depth), count = some_rows();
    const Plain<E> matrix = {depth, between(1, kMostVectors) * kLanes};
    Guarded<E> a(count * padded), b(depth * matrix.columns), packed(matrix.size());
    exact ? a.fill_with_integers() : a.fill_with_fractions();
    exact ? b.fill_with_integers() : b.fill_with_fractions();
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = depth; k < padded; ++k) a[i * padded + k] = {};
    matrix.pack(packed.data(), 0, [&](int64_t k) { return b.data() + k * matrix.columns; });
    std::vector<float> together(count * matrix.columns), apart(count * matrix.columns);
    const auto run = [&](int64_t first, int64_t rows, std::vector<float>& to) {
      const auto row = [&](int64_t i) -> const E* { return a.data() + (first + i) * padded; };
      multiply(matrix, packed.data(), PanelRange{0, 1}, LeftRows{rows, row}, FetchNothing{},
               [&](int64_t, int64_t i, const float* sums) {
                 memcpy(&to[(first + i) * matrix.columns], sums, matrix.columns * sizeof(float));
               });
    };
    run(0, count, together);
    for (int64_t first = 0, rows; first < count; first += rows) {
      rows = between(0, 1) ? 1 : between(1, count - first);
      run(first, rows, apart);
    }
    CHECK(memcmp(together.data(), apart.data(), together.size() * sizeof(float)) == 0,
          "other bits when rows are dealt otherwise: depth %ld, %ld rows", long(depth), long(count));
    for (int64_t i = 0; exact && i < count; ++i)
      for (int64_t j = 0; j < matrix.columns; ++j) {
        float expected = 0;
        for (int64_t k = 0; k < depth; ++k) expected += load(a[i * padded + k]) * load(b[k * matrix.columns + j]);
        CHECK(together[i * matrix.columns + j] == expected, "wrong sum: depth %ld, row %ld of %ld", long(depth),
              long(i), long(count));
      }
  }
  return nullptr;
}
#else
const char* check_bfloat16(int64_t, bool) { return "this build has no products of bfloat16"; }
#endif

template <class T>
const char* check_transpose() {
  constexpr int kLanes = Vec<T>::kLanes;
  typename Vec<T>::Native square[kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) square[i][j] = T(i * kLanes + j);
  transpose<T>(square);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) CHECK(square[i][j] == T(j * kLanes + i), "transposed wrongly at %d, %d", i, j);
  return nullptr;
}

// Matrices in storage type S, packed for arithmetic in T.
template <class T, class S>
const char* check_packing(int64_t cases) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t depth = between(1, 3 * kLanes + 2), columns = between(1, 9 * kLanes + 2);
    const Plain<T> matrix = {depth, columns};
    Guarded<S> rows(depth * columns), transpose(columns * depth);
    rows.fill_with_integers();
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < columns; ++j) transpose[j * depth + k] = rows[k * columns + j];
    Guarded<T> packed(matrix.size()), packed_transpose(matrix.size());
    memset(packed.data(), 0xff, matrix.size() * sizeof(T));
    memset(packed_transpose.data(), 0xff, matrix.size() * sizeof(T));
    int64_t seen = 0;
    for (int64_t panel = 0; panel < matrix.panels(); ++panel) {
      matrix.pack(packed.data(), panel, [&](int64_t k) { return rows.data() + k * columns; });
      matrix.pack_transpose_of(packed_transpose.data(), panel, transpose.data());
      const int64_t width = matrix.panel_vectors(panel) * kLanes, first = matrix.first_column(panel);
      CHECK(matrix.offset(panel) == seen, "panel %ld does not begin where the last one ended", long(panel));
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = 0; j < width; ++j, ++seen) {
          const T expected = first + j < columns ? load(rows[k * columns + first + j]) : T(0);
          CHECK(packed[seen] == expected && packed_transpose[seen] == expected, "packed wrongly: %ld x %ld",
                long(depth), long(columns));
        }
    }
    CHECK(seen == matrix.size(), "%ld numbers in panels, not %ld", long(seen), long(matrix.size()));
  }
  return nullptr;
}

// Some rows of A times a strip of an unpacked matrix; the order of a sum must not depend on the number of rows.
template <class T, class S>
const char* check_strip(int64_t cases) {
  constexpr int64_t kLanes = Vec<T>::kLanes, kFew = kLanes < kFewSideBySide ? kLanes : kFewSideBySide;
  for (int64_t n = 0; n < cases; ++n) {
    const bool is_deep = n % 8 == 0;
    const int64_t depth = some_depth(kLanes) + (is_deep ? between(1, 3) * kDepthOfStrip : 0);
    const int64_t columns = between(1, kLanes), rows = between(1, kRowsOfStrip);
    Guarded<S> matrix(columns * depth);
    Guarded<T> a(rows * depth);
    matrix.fill_with_integers();
    a.fill_with_integers();
    int64_t stored = 0;
    const char* wrong = nullptr;
    const LeftRows left = {rows, [&](int64_t i) { return a.data() + i * depth; }};
    const auto is_right = [&](int64_t i, const Vec<T>& found) {
      for (int64_t j = 0; j < columns; ++j) {
        T expected = 0;
        for (int64_t k = 0; k < depth; ++k) expected += load(matrix[j * depth + k]) * a[i * depth + k];
        if (found.v[j] != expected) return false;
      }
      return true;
    };
    multiply_strip<T, kLanes>(depth, matrix.data(), columns, left, [&](int64_t i, Vec<T> found) {
      ++stored;
      if (!is_right(i, found)) wrong = "wrong product with a strip";
      const LeftRows alone = {1, [&](int64_t) { return a.data() + i * depth; }};
      multiply_strip<T, kFew>(depth, matrix.data(), columns, alone, [&](int64_t, Vec<T> same) {
        if (memcmp(&same, &found, sizeof same) != 0) wrong = "a row's products depend on the other rows";
      });
    });
    multiply_strip<T, kFew>(depth, matrix.data(), columns, left, [&](int64_t i, Vec<T> found) {
      if (!is_right(i, found)) wrong = "wrong product with a strip, some columns at a time";
    });
    CHECK(!wrong, "%s: depth %ld, %ld rows, %ld columns", wrong, long(depth), long(rows), long(columns));
    CHECK(stored == rows, "%ld rows stored, not %ld", long(stored), long(rows));
  }
  return nullptr;
}

template <class T>
const char* check(const char* what, int64_t cases) {
  if (!strcmp(what, "multiply")) return check_multiply<T>(cases);
  if (!strcmp(what, "order")) return check_order<T>(cases);
  if (!strcmp(what, "transpose")) return check_transpose<T>();
  if (!strcmp(what, "packing")) return check_packing<T, T>(cases);
  if (!strcmp(what, "strip")) return check_strip<T, T>(cases);
  if (!strcmp(what, "multiply_bfloat16")) return check_bfloat16(cases, true);
  if (!strcmp(what, "order_bfloat16")) return check_bfloat16(cases, false);
  if constexpr (sizeof(T) == sizeof(float)) {
    const char* found = nullptr;
    if (!strcmp(what, "packing_16_bits"))
      return (found = check_packing<T, BFloat16>(cases)) ? found : check_packing<T, Half>(cases);
    if (!strcmp(what, "strip_16_bits"))
      return (found = check_strip<T, BFloat16>(cases)) ? found : check_strip<T, Half>(cases);
  }
  return "there is no such check";
}

}  // namespace
}  // namespace fused_rnn::cpu

extern "C" const char* check_product(const char* what, int is_double, uint64_t seed, int64_t cases) {
  fused_rnn::cpu::randoms.seed(seed);
  return is_double ? fused_rnn::cpu::check<double>(what, cases) : fused_rnn::cpu::check<float>(what, cases);
}
