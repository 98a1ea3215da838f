// The kernels of the stepwise engine, as the loop over time sees them: what each does, and on which arrays. Nothing
// here is CUDA's; streams are cudaStream_t.
#pragma once
#include "cuda/device/arrays.h"

namespace fused_rnn::cuda {

// The cell. Without a projection this is the whole step.
void launch_forward_step(const Forward&, const Step&, const ForwardArrays&, void* stream);
// With one: h as it was projected becomes the state and the output.
void launch_forward_projection(const Forward&, const Step&, const ForwardArrays&, void* stream);

// With a projection: the whole gradient of h, before launch_backward_step.
void launch_backward_projection(const Backward&, const Step&, const BackwardArrays&, void* stream);
void launch_backward_step(const Backward&, const Step&, const BackwardArrays&, void* stream);
// After the last step: gradients of the initial states.
void launch_backward_end(const Backward&, const BackwardArrays&, void* stream);
// The norms of this step, from `whole`.
void launch_norms(const Backward&, const Step&, const BackwardArrays&, void* stream);

// A matrix of numbers in S or T.
enum class Format { kStorage, kArithmetic };

// to[i, j] = from[i, j], converted; zeros where `from` is null. Strides are from row to row.
struct Copy {
  int64_t rows, columns;
  void* to;
  Format to_format;
  int64_t to_stride;
  const void* from;
  Format from_format;
  int64_t from_stride;
};
void launch_copy(Dtype, const Copy&, void* stream);

// The rows of a padded batch by weight groups, those past a row's end as zeros whatever lies there:
// to[m, k, t * B/K + b, j] = from[m, t * B + k * B/K + b, j]
struct Gather {
  int64_t columns;
  int64_t members;  // of the result
  void* to;         // [members, K, T * B/K, columns] S
  const void* from;
  int64_t from_member_stride, from_row_stride;
};
void launch_gather(const Backward&, const Gather&, void* stream);

// to[m, k, i, j] = the sum of piece i of group k's rows, cut into `pieces` even runs; row (o, b) of group k is
// from[m, o, k * inner + b, j]. In the order of the rows, so that sums are the same every time.
struct SumRows {
  int64_t members, groups, pieces, outer, inner, columns;
  void* to;          // [members, groups, pieces, columns]
  Format to_format;  // `from` has the other one
  const void* from;
  int64_t from_member_stride, from_row_stride;
};
void launch_sum_rows(Dtype, const SumRows&, void* stream);

// W_ih x of one direction where the rows are one-hot: to[m, i, j] = W_ih[m, j, the token of row first_row + i], zeros
// for padding.
struct LookUp {
  int64_t direction, gate_rows, first_row, rows;
  void* to;  // [members, .., gate_rows] T
  int64_t to_member_stride;
};
void launch_look_up(const Forward&, const LookUp&, void* stream);

// And their share of dL/dW_ih: to[m, k, id, j] = the sum of gates[m, row, j] over the rows of group k that hold this
// id, in their order, so that sums are the same every time. `to` comes as zeros.
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
