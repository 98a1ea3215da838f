// One matrix product for every use in the engine: C += A * B with B packed into panels of one register tile's width.
#pragma once
#include "vector.h"

namespace fused_rnn {
namespace {

// A register tile: this many rows of A by two vectors of B's columns. 24 sums leave AVX-512's 32 registers room for the
// operands, 12 sums the others' 16.
constexpr int kTileRows = kVectorBytes == 64 ? 12 : 6;
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
  for (int64_t first = 0; first < columns; first += kPanel<T>) {
    const int64_t width = columns - first < kPanel<T> ? columns - first : kPanel<T>;
    for (int64_t k = 0; k < depth; ++k, packed += kPanel<T>) {
      for (int64_t j = 0; j < width; ++j) packed[j] = at(k, first + j);
      for (int64_t j = width; j < kPanel<T>; ++j) packed[j] = T(0);
    }
  }
}

// C[m][n] += sum over k of a[k][m] * panel[k][n], for a tile of A packed as [depth][kRows]. Each sum is taken in kSplit
// parts: a sum waits for itself, and a single row has too few of them to keep the processor busy.
template <int kRows, int kSplit, class T>
void multiply_tile(int64_t depth, const T* a, const T* panel, T* c, int64_t ldc, int64_t columns) {
  using V = typename Vec<T>::Native;
  // Whole vectors in and out by value, and every index known when compiled: else the sums are kept in memory.
  V sum[kSplit][kRows][kTileVectors] = {};
  const auto add = [&](int s, int64_t k) {
    V b[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) b[v] = load_lanes<V>(panel + k * kPanel<T> + v * Vec<T>::kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
      for (int v = 0; v < kTileVectors; ++v) sum[s][m][v] += a[k * kRows + m] * b[v];
  };
  int64_t k = 0;
  for (; k + kSplit <= depth; k += kSplit) {
#pragma GCC unroll 4
    for (int s = 0; s < kSplit; ++s) add(s, k + s);
  }
  for (; k < depth; ++k) add(0, k);

#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    T out[kPanel<T>];
    for (int v = 0; v < kTileVectors; ++v) {
      V total = sum[0][m][v];
      for (int s = 1; s < kSplit; ++s) total += sum[s][m][v];
      store_lanes(out + v * Vec<T>::kLanes, total);
    }
    for (int64_t j = 0; j < columns; ++j) c[m * ldc + j] += out[j];
  }
}

template <int kValue>
struct Rows {
  static constexpr int kCount = kValue;
};

// Calls f with a compile-time number of rows, 1 .. kMost, equal to `rows`.
template <int kMost, class F>
void with_rows(int64_t rows, F f) {
  if constexpr (kMost > 0) {
    if (rows == kMost)
      f(Rows<kMost>{});
    else
      with_rows<kMost - 1>(rows, f);
  }
}

// C[m][n] += sum over k of A[m][k] * B[k][n], for m < rows, n < columns, k < depth.
// A[m][k] lies at a[m * a_row + k * a_depth]; B is packed; rows of C are ldc apart.
// Each sum runs in one order whatever the other rows are, so results do not depend on how rows were dealt to threads.
// Only a row that is always alone (`lone_row`) may be summed in another.
template <class T>
void multiply(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_depth,
              const T* packed_b, T* c, int64_t ldc, bool lone_row = false) {
  constexpr int64_t kBlockTiles = 4, kBlockDepth = 256;  // of A, packed on the stack and read by every panel of B
  T block[kBlockTiles * kTileRows * kBlockDepth];
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  // Even tiles: 16 rows are 8 + 8, not 12 + 4.
  const auto first_row = [&](int64_t tile) { return rows * tile / tiles; };

  for (int64_t k0 = 0; k0 < depth; k0 += kBlockDepth)
    for (int64_t tile0 = 0; tile0 < tiles; tile0 += kBlockTiles) {
      const int64_t block_depth = depth - k0 < kBlockDepth ? depth - k0 : kBlockDepth;
      const int64_t tile1 = tiles - tile0 < kBlockTiles ? tiles : tile0 + kBlockTiles;
      T* packed = block;
      for (int64_t tile = tile0; tile < tile1; ++tile)
        for (int64_t k = k0; k < k0 + block_depth; ++k)
          for (int64_t m = first_row(tile); m < first_row(tile + 1); ++m) *packed++ = a[m * a_row + k * a_depth];

      for (int64_t first = 0; first < columns; first += kPanel<T>) {
        const T* panel = packed_b + first * depth + k0 * kPanel<T>;
        const int64_t width = columns - first < kPanel<T> ? columns - first : kPanel<T>;
        const T* packed_tile = block;
        for (int64_t tile = tile0; tile < tile1; ++tile) {
          const int64_t m = first_row(tile), height = first_row(tile + 1) - m;
          T* out = c + m * ldc + first;
          if (lone_row)
            multiply_tile<1, 4>(block_depth, packed_tile, panel, out, ldc, width);
          else
            with_rows<kTileRows>(height, [&](auto count) {
              multiply_tile<decltype(count)::kCount, 1>(block_depth, packed_tile, panel, out, ldc, width);
            });
          packed_tile += height * block_depth;
        }
      }
    }
}

}  // namespace
}  // namespace fused_rnn
