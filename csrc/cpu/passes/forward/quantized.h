// A layer's matrices with weights of 8 bits (gemm/int8.h): packed, and multiplied by float rows.
#pragma once
#include "cpu/gemm/amx.h"
#include "cpu/gemm/int8.h"
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

// Vector v of a panel of a GateMatrix or Plain, from `count` <= L rows of its transpose.
template <class Matrix, class W, class S>
void quantize_vector(const Matrix& matrix, W* packed, Scales scales, int64_t panel, int v, const S* rows,
                     int64_t count) {
  const Scales own = scales.from(matrix.first_column(panel));
  for (int64_t j = 0; j < count; ++j)
    quantize_column(packed + matrix.offset(panel), matrix.panel_vectors(panel), v * Vec<float>::kLanes + j,
                    rows + j * matrix.depth, matrix.depth, own);
}

// The sums of a panel for one row, which become floats when they are loaded.
template <class Sum>
struct ScaledSums {
  const Sum* sums;
  Scales scales;  // of the panel's columns
  float of_row;

  ScaledSums operator+(int64_t column) const { return {sums + column, scales.from(column), of_row}; }
};
// The sums of a panel, as a product hands them to its epilogue.
template <class S>
using PanelSums = std::conditional_t<kQuantized<S>, ScaledSums<Arithmetic<Weight<S>>>, const Arithmetic<S>*>;

// A product that is rounded before it is added to: a compiler would contract it in some places and not in others, and the
// bits would differ between tiles and vectors.
FUSED_RNN_INLINE Vec<float> rounded(Vec<float> x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x.v));
#elif defined(__AVX2__)
  asm("" : "+x"(x.v));
#endif
  return x;
}
FUSED_RNN_INLINE Vec<float> load_vector(const ScaledSums<int32_t>& from) {
  const Ints integers = load_lanes<Ints>(from.sums) - load_lanes<Ints>(from.scales.offsets);
  return rounded(Vec<float>(__builtin_convertvector(integers, FloatLanes)) *
                 (load_vector(from.scales.values) * Vec<float>(from.of_row)));
}
FUSED_RNN_INLINE Vec<float> load_vector(const ScaledSums<float>& from) {
  return rounded(load_vector(from.sums) * load_vector(from.scales.values));
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
    const auto use_scaled = [=, *this](int64_t panel, int64_t i, const auto* sums) {
      using Sum = std::remove_cvref_t<decltype(*sums)>;  // named for clang before 17
      const ScaledSums<Sum> scaled = {sums, scales.from(matrix.first_column(panel)),
                                      kQuantizesRows ? rows.scales[i] : 1.f};
      use(panel, i, scaled);
      if constexpr (!std::is_same_v<Results, KeepNothing>) {
        const int64_t width = matrix.panel_vectors(panel) * kLanes;
        float* const to = results(panel) + i * width;
        for (int64_t j = 0; j < width; j += kLanes) store_vector(to + j, load_vector(scaled + j));
      }
    };
    if constexpr (kQuantizesRows) {
      for (int64_t i = 0; i < left.count; ++i) rows.quantize(i, left.row(i), matrix.depth);
      const LeftRows integers = {left.count, [this](int64_t i) { return rows.row(i); }, 1, left.single};
#ifdef FUSED_RNN_AMX_INT8  // the same sums
      if (left.count >= kLeastRowsForByteTiles)
        return multiply_on_tiles(matrix, packed, range, integers, fetch, use_scaled);
#endif
      multiply(matrix, packed, range, integers, fetch, use_scaled);
    } else {
      multiply(matrix, packed, range, left, fetch, use_scaled);
    }
  }

  // As GateWeights::look_up.
  void look_up(int64_t panel, const int64_t* ids, int64_t count, float* sums) const {
    constexpr int64_t kFactor = kTogether<W>;
    const int64_t width = matrix.panel_vectors(panel) * kLanes, first = matrix.first_column(panel);
    const W* const numbers = packed + matrix.offset(panel);
    for (int64_t i = 0; i < count; ++i, sums += width) {
      const W* const line = numbers + ids[i] / kFactor * width * kFactor + ids[i] % kFactor;
      for (int64_t j = 0; j < width; ++j) sums[j] = float(line[j * kFactor].value) * scales.values[first + j];
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
