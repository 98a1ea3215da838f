// Launches of the stepwise engine's kernels, without CUDA types; streams are cudaStream_t.
#pragma once
#include "cells/cells.h"
#include "cuda/device/arrays.h"

namespace fused_rnn::cuda {

// What depends on the cell, for one dtype.
struct CellLaunches {
  double initial[kMostStates];  // the cell's kInitial
  // Before the product with W_hh: the first h of rows that are reset. Null where that is zero.
  void (*restart)(const Forward&, const Step&, const ForwardArrays&, void* stream);
  // The cell; without a projection, the whole step.
  void (*forward_step)(const Forward&, const Step&, const ForwardArrays&, void* stream);
  void (*backward_step)(const Backward&, const Step&, const BackwardArrays&, void* stream);
  int output_gate;  // the cell's kOutputGate; below 0: it has none
};
// Those of a plug-in's cell may be compiled and loaded by this. Throws if there are none.
const CellLaunches& launches_of(int64_t cell, Dtype);

// With a projection: stores the projected h as state and output.
void launch_forward_projection(const Forward&, const Step&, const ForwardArrays&, void* stream);

// With layer norm: W_ih x and W_hh h of a step, before the cell's forward_step; if c is normalised, h after it.
void launch_normalise(const Forward&, const Step&, const ForwardArrays&, bool starts_at_zero, void* stream);
void launch_normed_h(const Forward&, const Step&, const ForwardArrays&, void* stream);
// If c is normalised: the whole gradient of h, and what c gets from it, before the cell's backward_step. After it:
// gradients of W_ih x and W_hh h.
void launch_to_normed_c(const Backward&, const Step&, const BackwardArrays&, int output_gate, void* stream);
void launch_through_norm(const Backward&, const Step&, const BackwardArrays&, void* stream);

// With a projection: the whole gradient of h, before the cell's backward_step.
void launch_backward_projection(const Backward&, const Step&, const BackwardArrays&, void* stream);
// After the last step: gradients of the initial states.
void launch_backward_end(const Backward&, const BackwardArrays&, void* stream);
// This step's norms of `whole`.
void launch_norms(const Backward&, const Step&, const BackwardArrays&, void* stream);

// Element types S and T (arrays.h).
enum class Format { kStorage, kArithmetic };

// to[i, j] = from[i, j], converted; `value` if `from` is null. Strides are those of rows.
struct Copy {
  int64_t rows, columns;
  void* to;
  Format to_format;
  int64_t to_stride;
  const void* from;
  Format from_format;
  int64_t from_stride;
  double value = 0;
};
void launch_copy(Dtype, const Copy&, void* stream);

// to[i] = from[i] * factor[i], in S.
struct Mask {
  int64_t count;
  void* to;
  const void *from, *factor;
};
void launch_mask(Dtype, const Mask&, void* stream);

// The rows of a padded batch ordered by weight group, with zeros past a row's end:
// to[m, k, t * B/K + b, j] = from[m, t * B + k * B/K + b, j]
struct Gather {
  int64_t columns;
  int64_t members;  // of the result
  void* to;         // [members, K, T * B/K, columns] S
  const void* from;
  int64_t from_member_stride, from_row_stride;
};
void launch_gather(const Backward&, const Gather&, void* stream);

// to[m, k, i, j] = the sum of piece i of group k's rows, which are split into `pieces` even runs; row (o, b) of group
// k is from[m, o, k * inner + b, j]. Summed in the order of the rows, so deterministic.
struct SumRows {
  int64_t members, groups, pieces, outer, inner, columns;
  void* to;          // [members, groups, pieces, columns]
  Format to_format;  // `from` has the other format
  const void* from;
  int64_t from_member_stride, from_row_stride;
};
void launch_sum_rows(Dtype, const SumRows&, void* stream);

// W_ih x of one direction, of one-hot rows: to[m, i, j] = W_ih[m, j, token of row first_row + i], zeros for padding.
struct LookUp {
  int64_t direction, gate_rows, first_row, rows;
  void* to;  // [members, .., gate_rows] T
  int64_t to_member_stride;
};
void launch_look_up(const Forward&, const LookUp&, void* stream);

// dL/dW_ih of one-hot rows: to[m, k, id, j] = the sum of gates[m, row, j] over the rows of group k with this id, in the
// order of the rows, so deterministic. `to` must be zeroed.
struct SumByToken {
  int64_t gate_rows;
  void* to;           // [M, K, I, gate_rows] T
  const void* gates;  // [M, N, ..] S
  int64_t gates_member_stride, gates_row_stride;
};
void launch_sum_by_token(const Backward&, const SumByToken&, void* stream);

// to[i, column, row] = from[i, row, column], in S from T.
struct Transpose {
  int64_t count, rows, columns;
  void* to;
  const void* from;
};
void launch_transpose(Dtype, const Transpose&, void* stream);

}  // namespace fused_rnn::cuda
