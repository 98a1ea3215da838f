#include "core/saved_row.h"
#include "cuda/host/passes.h"
#include "cuda/host/persistent_runs.h"

namespace fused_rnn::cuda {
namespace {

class BackwardLoop : Arrays {
 public:
  BackwardLoop(const Backward& g, const Machine& machine)
      : Arrays(g, machine),
        g_(g),
        on_device_(on_device(g)),
        cell_(traits_of_any(g.cell)),
        launches_(launches_of(g.cell, g.dtype)),
        times_(g),
        persistent_(g, Direction::kBackward, machine) {}

  void run() {
    begin();
    persistent_ ? persistent_.run(arrays_, 0, g_.steps) : run_stepwise();
    launch_backward_end(on_device_, arrays_, machine_.stream);
    if (g_.grad_input) input_gradient();
    for (int64_t d = 0; d < g_.directions; ++d) weight_gradients(d);
  }

 private:
  static constexpr Format kS = Format::kStorage, kT = Format::kArithmetic;

  int64_t gate_rows() const { return cell_.gates * g_.hidden; }
  int64_t further_width() const { return (cell_.states - 1) * g_.hidden; }  // W

  void begin() {
    const int64_t Q = problems_, B = g_.batch, D = g_.directions, H = g_.hidden, P = g_.output_size;
    const int64_t GH = gate_rows(), rows = g_.members * g_.rows * D, params = Q * B * cell_.params * H;
    arrays_.gates_x = g_.trace_x ? g_.trace_x : take(kS, rows * GH);
    const bool one_array = cell_.one_gate_gradient && !normalizes(g_);
    arrays_.gates_r = one_array ? arrays_.gates_x : g_.trace_r ? g_.trace_r : take(kS, rows * GH);
    if (cell_.recurrent && !persistent_) {
      arrays_.step_gates = take(kS, Q * B * GH);
      arrays_.through_gates = take(kT, Q * B * P);
    }
    if (g_.h_factor && g_.grads[0].hh) arrays_.masked_h = take(kS, rows * P);
    arrays_.dh = take(kT, Q * B * P);
    copy(arrays_.dh, kT, g_.grad_h_n, kS, Q * B * P);
    if (cell_.states > 1) {
      arrays_.dc = take(kT, Q * B * further_width());
      copy(arrays_.dc, kT, g_.grad_c_n, kS, Q * B * further_width());
    }
    if (params > 0) {
      arrays_.params = take(kT, params);
      copy(arrays_.params, kT, nullptr, kT, params);
    }
    if (normalizes(g_)) begin_norms();
    if (g_.grad_norms) {
      arrays_.whole[0] = take(kT, Q * B * P);
      if (cell_.states > 1) arrays_.whole[1] = take(kT, Q * B * further_width());
    }
    if (!projected(g_)) return;
    arrays_.outputs = g_.trace_output ? g_.trace_output : take(kS, rows * P);
    arrays_.step_outputs = take(kS, Q * B * P);
    arrays_.wide = take(kT, Q * B * H);
    arrays_.wide_h = take(kS, rows * H);
  }

  void begin_norms() {
    const int64_t QB = problems_ * g_.batch, H = g_.hidden, sums = QB * norm_sums(g_, cell_).count * H;
    arrays_.normed_x = take(kT, QB * gate_rows());
    arrays_.normed_r = cell_.one_gate_gradient ? arrays_.normed_x : take(kT, QB * gate_rows());
    for (void** of_c : {&arrays_.normed_h, &arrays_.to_c, &arrays_.tanh_c})
      if (normalizes_c(g_)) *of_c = take(kT, QB * H);
    arrays_.norms = take(kT, sums);
    copy(arrays_.norms, kT, nullptr, kT, sums);
  }

  // The time loop: gradients of the gates and of the initial states, norms.
  void run_stepwise() {
    StepProduct through_gates = gates_product(), through_projection = projection_product();
    const auto multiply_gates = [&](int64_t rows) {
      if (!cell_.recurrent) return;
      through_gates.run(rows);
      arrays_.through_gates_rows = rows;
    };
    int64_t rows = 0, present_before = 0;
    for (int64_t number = 0; number < g_.steps; ++number) {
      if (number > 0) multiply_gates(rows);
      Step step = times_.step(number, true);
      // Includes the previous step's rows, whose gradients are still to be added to dh.
      rows = std::max(step.rows, present_before);
      present_before = step.rows;
      step.rows = rows;
      if (projected(g_)) {
        launch_backward_projection(on_device_, step, arrays_, machine_.stream);
        through_projection.run(rows);
      }
      if (normalizes_c(g_)) launch_to_normed_c(on_device_, step, arrays_, launches_.output_gate, machine_.stream);
      launches_.backward_step(on_device_, step, arrays_, machine_.stream);
      if (normalizes(g_)) launch_through_norm(on_device_, step, arrays_, machine_.stream);
      if (g_.grad_norms) launch_norms(on_device_, step, arrays_, machine_.stream);
    }
    multiply_gates(rows);
  }

  StepProduct gates_product() {
    const int64_t B = g_.batch, P = g_.output_size, GH = gate_rows();
    const Matrices gates = {arrays_.step_gates, B * GH, GH, 1};
    const Matrices hh = cell_.recurrent ? weights(&Weights::hh, GH, P) : Matrices{};
    return StepProduct([=, this](int64_t rows) {
      return Product(machine_, g_.dtype, {problems_, rows, GH, P}, gates, hh,
                     {const_cast<void*>(arrays_.through_gates), kT, B * P, P});
    });
  }

  StepProduct projection_product() {
    const int64_t B = g_.batch, H = g_.hidden, P = g_.output_size;
    const Matrices outputs = {arrays_.step_outputs, B * P, P, 1};
    const Matrices hr = projected(g_) ? weights(&Weights::hr, P, H) : Matrices{};
    return StepProduct([=, this](int64_t rows) {
      return Product(machine_, g_.dtype, {problems_, rows, P, H}, outputs, hr,
                     {const_cast<void*>(arrays_.wide), kT, B * H, H});
    });
  }

  // One product for both directions, whose gates are adjacent: so the sum over both is rounded once.
  void input_gradient() {
    const int64_t N = g_.rows, I = g_.input_size, width = g_.directions * gate_rows();
    const Matrices ih = weights(&Weights::ih, gate_rows(), I);
    Product(machine_, g_.dtype, {g_.members, N, width, I}, {arrays_.gates_x, N * width, width, 1},
            {ih.data, width * I, I, 1}, {g_.grad_input, kS, N * I, I})
        .run();
  }

  // ---- gradients of the weights: sums over the rows of each group ---------------------------------------------------

  // [M, K, rows of a group, columns]
  struct Operand {
    const void* data;
    int64_t member_stride, group_stride, row_stride;
  };

  // `unset_padding`: padding may hold anything, NaN included, and must not be multiplied, not even by zero gradients.
  Operand by_group(const void* data, int64_t member_stride, int64_t row_stride, int64_t columns,
                   bool unset_padding = false) const {
    const int64_t K = g_.weight_groups, N = g_.rows;
    const bool mask = unset_padding && on_device_.lengths;
    if (!mask && K == 1) return {data, member_stride, 0, row_stride};
    if (!mask && K == g_.batch) return {data, member_stride, row_stride, g_.batch * row_stride};
    const bool shared = member_stride == 0 && (!mask || g_.lengths_member_stride == 0);
    const int64_t members = shared ? 1 : g_.members;
    void* const gathered = take(kS, members * N * columns);
    launch_gather(on_device_, {columns, members, gathered, data, member_stride, row_stride}, machine_.stream);
    return {gathered, shared ? 0 : N * columns, N / K * columns, columns};
  }

  // to[m, k] = left[m, k]^T right[m, k], [rows, columns], accumulated in T and rounded once.
  void multiply(const Operand& left, int64_t rows, const Operand& right, int64_t columns, void* to) const {
    const int64_t M = g_.members, K = g_.weight_groups, size = rows * columns;
    void* const sums = is_wide() ? take(kT, M * K * size) : to;
    const auto run = [&](int64_t batch, int64_t m, int64_t left_stride, int64_t right_stride) {
      const Matrices a = {offset(left.data, kS, m * left.member_stride), left_stride, left.row_stride, 1};
      const Matrices b = {offset(right.data, kS, m * right.member_stride), right_stride, right.row_stride, 1};
      Product(machine_, g_.dtype, {batch, rows, g_.rows / K, columns}, a.transposed(), b,
              {offset(sums, kT, m * K * size), kT, size, columns})
          .run();
    };
    if (K == 1) run(M, 0, left.member_stride, right.member_stride);
    for (int64_t m = 0; m < M && K > 1; ++m) run(K, m, left.group_stride, right.group_stride);
    if (is_wide()) copy(to, kS, sums, kT, M * K * size);
  }

  // Sums the gates' gradients over the rows, into the biases that are not null: in pieces, then the pieces.
  void sum_gates(const void* gates, void* one, void* other) const {
    if (!one && !other) return;
    constexpr int64_t kRowsOfAPiece = 64, kMostPieces = 256;
    const int64_t M = g_.members, K = g_.weight_groups, GH = gate_rows(), width = g_.directions * GH;
    const int64_t outer = K == 1 ? 1 : g_.steps, inner = K == 1 ? g_.rows : g_.batch / K;
    const int64_t pieces = std::clamp<int64_t>(outer * inner / kRowsOfAPiece, 1, kMostPieces);
    void* const sums = take(kT, M * K * pieces * GH);
    launch_sum_rows(g_.dtype, {M, K, pieces, outer, inner, GH, sums, kT, gates, g_.rows * width, width},
                    machine_.stream);
    for (void* bias : {one, other})
      if (bias)
        launch_sum_rows(g_.dtype, {M * K, 1, 1, 1, pieces, GH, bias, kS, sums, pieces * GH, GH}, machine_.stream);
  }

  // dL/dW_ih of one-hot rows: summed as [I, G*H], which makes accesses coalesced, then transposed.
  void sum_by_token(const void* gates, void* to) const {
    const int64_t count = g_.members * g_.weight_groups, I = g_.input_size, GH = gate_rows();
    const int64_t width = g_.directions * GH;
    void* const sums = take(kT, count * I * GH);
    copy(sums, kT, nullptr, kT, count * I * GH);
    launch_sum_by_token(on_device_, {GH, sums, gates, g_.rows * width, width}, machine_.stream);
    launch_transpose(g_.dtype, {count, I, GH, to, sums}, machine_.stream);
  }

  void weight_gradients(int64_t d) const {
    const WeightGradients& out = g_.grads[d];
    const int64_t N = g_.rows, D = g_.directions, H = g_.hidden, I = g_.input_size, P = g_.output_size,
                  R = g_.saved_width;
    const int64_t GH = gate_rows(), K = g_.weight_groups;
    const void* const gates_x = offset(arrays_.gates_x, kS, d * GH);
    const void* const gates_r = offset(arrays_.gates_r, kS, d * GH);
    const auto all_gates = [&](const void* gates) { return by_group(gates, N * D * GH, D * GH, GH); };
    if (out.ih && g_.tokens)
      sum_by_token(gates_x, out.ih);
    else if (out.ih)
      multiply(all_gates(gates_x), GH, by_group(g_.input, g_.input_member_stride, I, I, true), I, out.ih);
    if (out.hh) {
      const void* const h = offset(g_.saved, kS, d * N * R + cell_.saved * H);
      const void* const masked_h = offset(arrays_.masked_h, kS, d * P);
      multiply(all_gates(gates_r), GH,
               masked_h ? by_group(masked_h, N * D * P, D * P, P) : by_group(h, D * N * R, R, P), P, out.hh);
    }
    if (out.norms) {
      const int64_t width = norm_sums(g_, cell_).count * H, B = g_.batch;
      launch_sum_rows(g_.dtype,
                      {1, 1, 1, 1, B, width, out.norms, kS, offset(arrays_.norms, kT, d * B * width), 0, width},
                      machine_.stream);
    }
    if (out.hr) {
      const void* const outputs = offset(arrays_.outputs, kS, d * P);
      const void* const wide_h = offset(arrays_.wide_h, kS, d * H);
      multiply(by_group(outputs, N * D * P, D * P, P), P, by_group(wide_h, N * D * H, D * H, H), H, out.hr);
    }
    if (cell_.one_gate_gradient) {
      sum_gates(gates_x, out.bias_ih, out.bias_hh);
    } else {
      sum_gates(gates_x, out.bias_ih, nullptr);
      sum_gates(gates_r, out.bias_hh, nullptr);
    }
    if (!out.params) return;
    const int64_t numbers = cell_.params * H, B = g_.batch;
    launch_sum_rows(g_.dtype,
                    {g_.members, K, 1, 1, B / K, numbers, out.params, kS, offset(arrays_.params, kT, d * B * numbers),
                     D * B * numbers, numbers},
                    machine_.stream);
  }

  const Backward& g_;
  const Backward on_device_;
  const CellTraits cell_;
  const CellLaunches& launches_;
  const Times times_;
  const PersistentRuns<Backward, BackwardArrays> persistent_;
  BackwardArrays arrays_ = {};
};

}  // namespace

void run_backward(const Backward& g, const Machine& machine) {
  raise_report(g.device);
  BackwardLoop(g, machine).run();
}

}  // namespace fused_rnn::cuda
