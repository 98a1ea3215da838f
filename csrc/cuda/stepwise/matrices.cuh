// Copies and sums of matrices: see kernels.h.
#pragma once
#include "cuda/device/each_unit.cuh"
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {
namespace {

template <class To, class From>
__global__ void copy(const Copy c) {
  for_each(c.columns, c.rows, 1, [&](int64_t column, int64_t row, int64_t) {
    const From* from = at<From>(c.from, row * c.from_stride + column);
    store(*at<To>(c.to, row * c.to_stride + column), from ? load(*from) : Arithmetic<From>(c.value));
  });
}

template <class S>
__global__ void mask(const Mask m) {
  for_each(m.count, 1, 1, [&](int64_t i, int64_t, int64_t) {
    store(*at<S>(m.to, i), load(*at<S>(m.from, i)) * load(*at<S>(m.factor, i)));
  });
}

template <class S>
__global__ void gather(const Backward g, const Gather c) {
  const int64_t of_group = g.batch / g.weight_groups;
  for_each(c.columns, g.rows, c.members, [&](int64_t column, int64_t row, int64_t m) {
    const int64_t t = row / g.batch, b = row % g.batch, group = b / of_group;
    const int64_t to_row = (group * g.steps + t) * of_group + b % of_group;
    S value;
    if (is_active(g, m, t, b))
      value = *at<S>(c.from, m * c.from_member_stride + row * c.from_row_stride + column);
    else
      store(value, Arithmetic<S>(0));
    *at<S>(c.to, (m * g.rows + to_row) * c.columns + column) = value;
  });
}

template <class To, class From>
__global__ void sum_rows(const SumRows s) {
  const int64_t rows = s.outer * s.inner;
  for_each(s.columns, s.pieces, s.members * s.groups, [&](int64_t column, int64_t piece, int64_t i) {
    const int64_t m = i / s.groups, group = i % s.groups, end = rows * (piece + 1) / s.pieces;
    Arithmetic<From> sum = 0;
    for (int64_t row = rows * piece / s.pieces; row < end; ++row) {
      const int64_t place = (row / s.inner * s.groups + group) * s.inner + row % s.inner;
      sum += load(*at<From>(s.from, m * s.from_member_stride + place * s.from_row_stride + column));
    }
    store(*at<To>(s.to, (i * s.pieces + piece) * s.columns + column), sum);
  });
}

}  // namespace
}  // namespace fused_rnn::cuda
