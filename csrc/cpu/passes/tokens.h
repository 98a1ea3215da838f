// One-hot rows, given as ids: W_ih x is a look-up, and dL/dW_ih a scatter-add of rows.
#pragma once
#include "cpu/gemm/panels.h"

namespace fused_rnn::cpu {
namespace {

// from[j * ld] in lanes j < count, zeros in the others.
template <class S>
Vec<Arithmetic<S>> load_column(const S* from, int64_t ld, int64_t count) {
  using V = Vec<Arithmetic<S>>;
  Arithmetic<S> some[V::kLanes] = {};
  for (int64_t j = 0; j < count; ++j) some[j] = load(from[j * ld]);
  return load_vector(some);
}

// Adds numbers first .. first + n - 1 of a row of A (element.h).
template <class E>
void add_row(Arithmetic<E>* to, const E* from, int64_t first, int64_t n) {
  constexpr int64_t kLanes = Vec<Arithmetic<E>>::kLanes;
  for (int64_t j = 0; j < n; j += kLanes)
    store_vector(to + j, load_vector(to + j, n - j) + load_at(from, first + j, n - j), n - j);
}

// Rows [j0, j1) of `to` [columns, rows], the transpose of `from` [rows, columns].
template <class S, class T>
void store_transposed(S* to, const T* from, int64_t rows, int64_t columns, int64_t j0, int64_t j1) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  for (int64_t j = j0; j < j1; j += kLanes)
    for (int64_t i = 0; i < rows; i += kLanes) {
      typename Vec<T>::Native square[kLanes];
      for (int64_t k = 0; k < kLanes; ++k)
        square[k] = i + k < rows ? load_vector(from + (i + k) * columns + j, columns - j).v : typename Vec<T>::Native{};
      transpose<T>(square);
      for (int64_t k = 0; k < kLanes && j + k < j1; ++k)
        store_vector(to + (j + k) * rows + i, Vec<T>(square[k]), rows - i);
    }
}

}  // namespace
}  // namespace fused_rnn::cpu
