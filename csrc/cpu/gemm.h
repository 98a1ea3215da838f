// One matrix product for every use in the engine: C += A * B with B packed into panels of one register tile's width.
#pragma once
#include "vector.h"

namespace fused_rnn {
namespace {

// A tile of 6 rows x 2 vectors keeps 12 sums in flight and fits 16 registers.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

template <class T>
constexpr int kPanel = kTileVectors * Vec<T>::kLanes;  // columns of one panel

template <class T>
int64_t panels(int64_t columns) {
  return (columns + kPanel<T> - 1) / kPanel<T>;
}
// Elements that a packed [depth, columns] matrix takes: the last panel is padded with zeros.
template <class T>
int64_t packed_size(int64_t depth, int64_t columns) {
  return panels<T>(columns) * kPanel<T> * depth;
}

// packed[panel][k][column] = at(k, column)
template <class T, class At>
void pack(T* packed, int64_t depth, int64_t columns, At at) {
  for (int64_t p = 0; p < panels<T>(columns); ++p)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = p * kPanel<T>; j < (p + 1) * kPanel<T>; ++j) *packed++ = j < columns ? at(k, j) : T(0);
}

template <int kRows, class T>
void multiply_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* panel, T* c, int64_t ldc,
                   int64_t columns) {
  using V = typename Vec<T>::Native;
  V sum[kRows][kTileVectors] = {};
  for (int64_t k = 0; k < depth; ++k, panel += kPanel<T>) {
    V b[kTileVectors];
    memcpy(b, panel, sizeof b);
    for (int m = 0; m < kRows; ++m)
      for (int v = 0; v < kTileVectors; ++v) sum[m][v] += a[m * a_row + k * a_depth] * b[v];
  }
  for (int m = 0; m < kRows; ++m) {
    T out[kPanel<T>];
    memcpy(out, sum[m], sizeof out);
    for (int64_t j = 0; j < columns; ++j) c[m * ldc + j] += out[j];
  }
}

// C[m][n] += sum over k of A[m][k] * B[k][n], for m < rows, n < columns, k < depth.
// A[m][k] lies at a[m * a_row + k * a_depth]; B is packed; rows of C are ldc apart.
template <class T>
void multiply(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_depth,
              const T* packed_b, T* c, int64_t ldc) {
  for (int64_t p = 0; p < panels<T>(columns); ++p) {
    const T* panel = packed_b + p * kPanel<T> * depth;
    const int64_t first = p * kPanel<T>;
    const int64_t width = columns - first < kPanel<T> ? columns - first : kPanel<T>;
    int64_t m = 0;
    for (; m + kTileRows <= rows; m += kTileRows)
      multiply_tile<kTileRows>(depth, a + m * a_row, a_row, a_depth, panel, c + m * ldc + first, ldc, width);
    for (; m < rows; ++m)
      multiply_tile<1>(depth, a + m * a_row, a_row, a_depth, panel, c + m * ldc + first, ldc, width);
  }
}

}  // namespace
}  // namespace fused_rnn
