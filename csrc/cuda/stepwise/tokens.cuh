// One-hot rows, given as ids: see kernels.h.
#pragma once
#include "cuda/device/each_unit.cuh"
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {
namespace {

template <class S>
__global__ void look_up(const Forward f, const LookUp l) {
  using T = Arithmetic<S>;
  for_each(l.gate_rows, l.rows, f.members, [&](int64_t j, int64_t i, int64_t m) {
    const int64_t row = l.first_row + i;
    T value(0);
    if (is_active(f, m, row / f.batch, row % f.batch)) {
      const int64_t id = f.tokens[m * f.input_member_stride + row];
      require(0 <= id && id < f.input_size);
      value = load(*at<S>(pick(f.weights, l.direction).ih, (m * l.gate_rows + j) * f.input_size + id));
    }
    *at<T>(l.to, m * l.to_member_stride + i * l.gate_rows + j) = value;
  });
}

// Each thread has one gate row and every kShares-th id: it reads the ids of all rows and sums those that are its own.
constexpr int64_t kShares = 32;

template <class S>
__global__ void sum_by_token(const Backward g, const SumByToken s) {
  using T = Arithmetic<S>;
  const int64_t K = g.weight_groups;
  const bool together = K == 1 && !g.lengths;  // packed rows too
  const int64_t outer = together ? 1 : g.steps, inner = together ? g.rows : g.batch / K;
  for_each(s.gate_rows, kShares, g.members * K, [&](int64_t j, int64_t share, int64_t i) {
    const int64_t m = i / K, first = i % K * inner;
    T* const sums = at<T>(s.to, i * g.input_size * s.gate_rows + j);
    for (int64_t t = 0; t < outer; ++t)
      for (int64_t b = first; b < first + inner; ++b) {
        const int64_t row = t * g.batch + b, id = g.tokens[m * g.input_member_stride + row];
        if (id % kShares != share || !is_active(g, m, t, b)) continue;
        sums[id * s.gate_rows] += load(*at<S>(s.gates, m * s.gates_member_stride + row * s.gates_row_stride + j));
      }
  });
}

template <class S>
__global__ void transpose(const Transpose t) {
  for_each(t.rows, t.columns, t.count, [&](int64_t row, int64_t column, int64_t i) {
    store(*at<S>(t.to, (i * t.columns + column) * t.rows + row),
          *at<Arithmetic<S>>(t.from, (i * t.rows + row) * t.columns + column));
  });
}

}  // namespace
}  // namespace fused_rnn::cuda
