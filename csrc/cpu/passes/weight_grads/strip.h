// Strips: some columns of dgates or dh, packed as the left operand, dgates^T, of the weight gradients.
#pragma once
#include "cpu/gemm/amx.h"
#include "cpu/passes/backward/rounds.h"
#include "cpu/passes/workspace.h"

namespace fused_rnn::cpu {
namespace {

template <class S>
struct Strip {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kColumns = kParts<E> > 1 ? kStripColumnsSplit : kStripColumns;
  // The columns of a register tile are interleaved.
  static constexpr int64_t kTileColumns = 6;
  // For bfloat16 products each column becomes a contiguous row. Its stride is not a power of two: else all columns
  // would compete for the same few sets of L1.
  static constexpr bool kTransposed = kTogether<E> > 1;
  static constexpr int64_t kTransposedColumn = kRowsOfRound + 32;
  static constexpr int64_t kStep = kTransposed ? 1 : kTileColumns;  // between elements of a column

  E* numbers;

  explicit Strip(Carver& carve) : numbers(carve.take<E>(kColumns * (kTransposed ? kTransposedColumn : kRowsOfRound))) {}

  const E* column(int64_t j, int64_t depth) const {
    if (kTransposed) return numbers + j * kTransposedColumn;
    return numbers + j / kTileColumns * kTileColumns * depth + j % kTileColumns;
  }

  // Packs columns j0 .. j0 + width - 1 of row(k), k < depth, and sums them over k: `row_sums`, in whole vectors.
  // Blocked over k, so that rows are read from L1 the second time.
  template <class Row>
  void copy(Row row, int64_t depth, int64_t j0, int64_t width, V* row_sums) const {
    E* const to = numbers;
    for (int64_t j = 0; j < width; j += kLanes) row_sums[j / kLanes] = V(T(0));
    for (int64_t k0 = 0; k0 < depth; k0 += kStripRowsAtOnce) {
      const int64_t k1 = minimum(depth, k0 + kStripRowsAtOnce);
      if constexpr (!kTransposed) {
        for (int64_t j = 0; j < width; j += kLanes) {  // rows are padded to whole vectors
          V sum = row_sums[j / kLanes];
          for (int64_t k = k0; k < k1; ++k) sum = sum + load_at(row(k), j0 + j);
          row_sums[j / kLanes] = sum;
        }
        for (int64_t j = 0; j < width; j += kTileColumns)
          for (int64_t k = k0; k < k1; ++k)  // columns beyond the width are not used
            memcpy(to + j * depth + k * kTileColumns, row(k) + j0 + j, sizeof(E) * kTileColumns);
      } else {
        for (int64_t j = 0; j < width; j += kLanes)
          for (int64_t k = k0; k < k1; k += kLanes * kTogether<E>) {
            Square<E> square;
            for (int64_t i = 0; i < kLanes; ++i)
              square.set_row(i, load_line<E>(row, k / kTogether<E> + i, depth, j0 + j, width - j));
            row_sums[j / kLanes] = square.add_rows_to(row_sums[j / kLanes]);
            square.transpose();
            for (int64_t i = 0; i < minimum(kLanes, width - j); ++i)
              store_factors(to + (j + i) * kTransposedColumn + k, square.row(i));
          }
      }
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
