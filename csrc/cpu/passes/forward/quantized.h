// A layer's matrices with weights of 8 bits (gemm/int8.h): packed, and multiplied by float rows.
#pragma once
#include "cpu/gemm/int8.h"
#include "cpu/gemm/product.h"
#include "cpu/passes/run.h"

namespace fused_rnn::cpu {
namespace {

// By column of the panels, with their padding.
struct Scales {
  float* values;
  int32_t* offsets;  // kOffset times the sum of the column's integers

  Scales from(int64_t column) const { return {values + column, offsets + column}; }
};

// One row of the matrix, a column of B: column `column` of a panel of `vectors` vectors.
template <class W, class S>
void quantize_column(W* panel, int vectors, int64_t column, const S* from, int64_t depth, Scales scales) {
  constexpr int64_t kFactor = kTogether<W>;
  const int64_t width = vectors * Vec<float>::kLanes;
  const Scale scale = scale_of(from, depth);
  int32_t sum = 0;
  for (int64_t k = 0; k < depth; ++k) {
    const float rounded = float(load(from[k])) * scale.inverse + MathOf<float>::kRound;
    const int32_t q = int32_t(rounded - MathOf<float>::kRound);
    panel[(k / kFactor * width + column) * kFactor + k % kFactor].value = int8_t(q);
    sum += q;
  }
  scales.values[column] = scale.value;
  scales.offsets[column] = kOffset * sum;
}

// The first column of a panel, with padding: all panels but the last are of one width.
template <class Matrix>
int64_t columns_before(const Matrix& matrix, int64_t panel) {
  return panel * matrix.panel_vectors(0) * Vec<float>::kLanes;
}

// Vector v of a panel of a GateMatrix or Plain, from `count` <= L rows of its transpose.
template <class Matrix, class W, class S>
void quantize_vector(const Matrix& matrix, W* packed, Scales scales, int64_t panel, int v, const S* rows,
                     int64_t count) {
  const Scales own = scales.from(columns_before(matrix, panel));
  for (int64_t j = 0; j < count; ++j)
    quantize_column(packed + matrix.offset(panel), matrix.panel_vectors(panel), v * Vec<float>::kLanes + j,
                    rows + j * matrix.depth, matrix.depth, own);
}

// The interface of GateWeights (pack.h), for float rows.
template <class Matrix, class W>
struct QuantizedWeights {
  static constexpr int64_t kLanes = Vec<float>::kLanes;
  static constexpr bool kQuantizesRows = std::is_same_v<W, Int8>;

  Matrix matrix;
  const W* packed;
  Scales scales;       // of the whole matrix
  QuantizedRows rows;  // scratch memory

  template <class Row, class Fetch, class Use, class Results = KeepNothing>
  void multiply_by(PanelRange range, const LeftRows<Row>& left, Fetch fetch, Use use, Results results = {}) const {
    float buffer[kMostVectors * kLanes] __attribute__((aligned(64)));
    const auto scale_and_use = [&](int64_t panel, int64_t i, const auto* sums) {
      const int64_t width = matrix.panel_vectors(panel) * kLanes;
      float* const kept = results(panel);
      float* const to = kept ? kept + i * width : buffer;
      for (int64_t j = 0; j < width; j += kLanes) store_vector(to + j, scaled(panel, i, j, sums + j));
      use(panel, i, to);
    };
    if constexpr (kQuantizesRows) {
      for (int64_t i = 0; i < left.count; ++i) rows.quantize(i, left.row(i), matrix.depth);
      const LeftRows integers = {left.count, [this](int64_t i) { return rows.row(i); }, 1, left.single};
      multiply(matrix, packed, range, integers, fetch, scale_and_use);
    } else {
      multiply(matrix, packed, range, left, fetch, scale_and_use);
    }
  }

  // As GateWeights::look_up.
  void look_up(int64_t panel, const int64_t* ids, int64_t count, float* sums) const {
    constexpr int64_t kFactor = kTogether<W>;
    const int64_t width = matrix.panel_vectors(panel) * kLanes, first = columns_before(matrix, panel);
    const W* const numbers = packed + matrix.offset(panel);
    for (int64_t i = 0; i < count; ++i, sums += width) {
      const W* const line = numbers + ids[i] / kFactor * width * kFactor + ids[i] % kFactor;
      for (int64_t j = 0; j < width; ++j) sums[j] = float(line[j * kFactor].value) * scales.values[first + j];
    }
  }

 private:
  FUSED_RNN_INLINE Vec<float> scaled(int64_t panel, int64_t i, int64_t j, const int32_t* sums) const {
    const int64_t column = columns_before(matrix, panel) + j;
    const Ints integers = load_lanes<Ints>(sums) - load_lanes<Ints>(scales.offsets + column);
    const Vec<float> scale = load_vector(scales.values + column) * Vec<float>(rows.scales[i]);
    return Vec<float>(__builtin_convertvector(integers, FloatLanes)) * scale;
  }
  FUSED_RNN_INLINE Vec<float> scaled(int64_t panel, int64_t, int64_t j, const float* sums) const {
    return load_vector(sums) * load_vector(scales.values + columns_before(matrix, panel) + j);
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
