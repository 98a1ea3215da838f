// Strips: some columns of dgates, or of dh, copied together as the left operand of the weight gradients, dgates^T.
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
  // Those of a tile of rows lie together, line by line.
  static constexpr int64_t kTileColumns = 6;
  // Of bfloat16 each column is turned into a row. Its length in bytes is no power of two: else all columns would
  // compete for the same few sets of the first-level cache.
  static constexpr bool kTurned = kTogether<E> > 1;
  static constexpr int64_t kTurnedColumn = kRowsOfRound + 32;
  static constexpr int64_t kStep = kTurned ? 1 : kTileColumns;  // from one number of a column to the next

  E* numbers;

  explicit Strip(Carver& carve) : numbers(carve.take<E>(kColumns * (kTurned ? kTurnedColumn : kRowsOfRound))) {}

  // Where column j begins.
  const E* column(int64_t j, int64_t depth) const {
    if (kTurned) return numbers + j * kTurnedColumn;
    return numbers + j / kTileColumns * kTileColumns * depth + j % kTileColumns;
  }

  // Takes columns j0 .. j0 + width - 1 of the rows that row(k) points to, k < depth. Their sums over k come along:
  // `row_sums`, of whole vectors. Some rows at a time, so that these are in the first-level cache when they are copied.
  template <class Row>
  void copy(Row row, int64_t depth, int64_t j0, int64_t width, V* row_sums) const {
    E* const to = numbers;
    for (int64_t j = 0; j < width; j += kLanes) row_sums[j / kLanes] = V(T(0));
    for (int64_t k0 = 0; k0 < depth; k0 += kStripRowsAtOnce) {
      const int64_t k1 = minimum(depth, k0 + kStripRowsAtOnce);
      if constexpr (!kTurned) {
        for (int64_t j = 0; j < width; j += kLanes) {  // rows are as long as whole vectors
          V sum = row_sums[j / kLanes];
          for (int64_t k = k0; k < k1; ++k) sum = sum + load_at(row(k), j0 + j);
          row_sums[j / kLanes] = sum;
        }
        for (int64_t j = 0; j < width; j += kTileColumns)
          for (int64_t k = k0; k < k1; ++k)  // what lies beyond the width is not used
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
              store_factors(to + (j + i) * kTurnedColumn + k, square.row(i));
          }
      }
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
