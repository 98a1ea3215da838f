// Before the loop: packs the weights, and writes everything that no step writes.
#pragma once
#include "cpu/passes/backward/state.h"

namespace fused_rnn::cpu {
namespace {

// A share of one problem.
template <class S>
class BackwardPreparation {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using State = BackwardState<S>;

 public:
  BackwardPreparation(const Backward& g, const Plan& plan, void* buffer, int64_t task)
      : g_(g),
        plan_(plan),
        state_(part_at<State>(buffer, 0, g, plan)),
        problem_(task / plan.threads),
        m_(problem_ / g.directions),
        d_(problem_ % g.directions),
        part_(task % plan.threads) {}

  void run() const {
    const Weights& w = g_.weights[d_];
    if (!State::reads_weights_once(g_)) {
      if (g_.grad_input) pack(State::input_weights(g_), state_.ih, w.ih);
      if (state_.cell.recurrent) pack(State::hidden_weights(g_), state_.hh, w.hh);
    }
    if (projected(g_)) pack(State::projection(g_), state_.hr, w.hr);
    if (part_ > 0) return;
    load_params();
    clear();
    if (g_.lengths) pass_by_rows_of_length_0();
    if (g_.lengths && g_.grad_input && !g_.offsets && d_ == 0) clear_padding_of_input();
  }

 private:
  void pack(const Plain<E>& matrix, E* to, const void* weights) const {
    const S* from = at<S>(weights, m_ * matrix.depth * matrix.columns);
    const Range own = part_of(matrix.panels(), plan_.threads, part_);
    for (int64_t panel = own.first; panel < own.last; ++panel)
      matrix.pack(to + problem_ * matrix.size(), panel, [&](int64_t k) { return from + k * matrix.columns; });
  }

  void load_params() const {
    const int64_t H = g_.hidden;
    for (int64_t p = 0; p < state_.cell.params; ++p)
      load_row(state_.params + (problem_ * state_.cell.params + p) * state_.unit_stride,
               at<S>(g_.weights[d_].params, (m_ * state_.cell.params + p) * H), H);
  }

  void clear() const {
    const int64_t row_size = state_.cell.params * state_.unit_stride;
    zero_row(state_.row_params + problem_ * g_.batch * row_size, g_.batch * row_size);
    zero_row(state_.norms_of(g_, problem_, 0, 0), g_.batch * state_.norm.count * state_.unit_stride);
    for (int64_t i = state_.first_row(g_, problem_, 0); i < state_.first_row(g_, problem_ + 1, 0); ++i) {
      clear_padding(state_.gates_x + i * state_.gate_stride, state_.cell.gates * g_.hidden);
      clear_padding(state_.gates_r + i * state_.gate_stride, state_.cell.gates * g_.hidden);
      if (projected(g_)) clear_padding(state_.outputs + i * state_.output_stride, g_.output_size);
    }
    if (problem_ == 0) zero_row(state_.zeros, maximum(state_.gate_stride, state_.output_stride));
    if (problem_ == 0) zero_row(state_.zero_sums, kMostVectors * State::kLanes);
    const int64_t members = plan_.row_chunks * plan_.unit_chunks;
    Team(state_.teams + problem_ * members, members).clear();
  }

  void pass_by_rows_of_length_0() const {
    const int64_t W = (state_.cell.states - 1) * g_.hidden, P = g_.output_size;
    for (int64_t b = 0; b < g_.batch; ++b) {
      if (is_active(g_, m_, 0, b)) continue;
      const int64_t row = problem_ * g_.batch + b;
      if (g_.grad_h0) copy_row(at<S>(g_.grad_h0, row * P), at<S>(g_.grad_h_n, row * P), P);
      if (g_.grad_c0) copy_row(at<S>(g_.grad_c0, row * W), at<S>(g_.grad_c_n, row * W), W);
    }
  }

  // Steps past a row's end have zero gradient.
  void clear_padding_of_input() const {
    const int64_t I = g_.input_size;
    for (int64_t t = 0; t < g_.steps; ++t)
      for (int64_t b = 0; b < g_.batch; ++b)
        if (!is_active(g_, m_, t, b)) zero_row(at<S>(g_.grad_input, (m_ * g_.rows + row_of(g_, t, b)) * I), I);
  }

  const Backward& g_;
  const Plan& plan_;
  State state_;
  int64_t problem_, m_, d_, part_;
};

}  // namespace
}  // namespace fused_rnn::cpu
