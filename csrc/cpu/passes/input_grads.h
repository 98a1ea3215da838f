// dL/dx = dgates W_ih, for the steps of one round.
#pragma once
#include "cpu/passes/backward/workspace.h"

namespace fused_rnn::cpu {
namespace {

// A share of one member's rows, in direction d.
template <class S>
class InputGrads {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using State = BackwardState<S>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  InputGrads(const BackwardWorkspace<S>& space, int64_t round, int64_t task, int64_t d)
      : g_(space.g),
        state_(space.state()),
        rows_(space.scratch(task).rows),
        sums_(space.input_grads().sums),
        round_(round),
        m_(task / space.plan.threads),
        d_(d) {
    rows_.gather(g_, state_, round, m_ * g_.directions + d, {0, g_.batch});
    own_ = part_of(rows_.count, space.plan.threads, task % space.plan.threads);
  }

  void run() const {
    const Plain<E> ih = State::input_weights(g_);
    const auto row = [&](int64_t i) { return state_.gates_x + rows_.slots[own_.first + i] * state_.gate_stride; };
    multiply_right(ih, state_.right(g_, ih, state_.ih, &Weights::ih, m_ * g_.directions + d_),
                   PanelRange{0, ih.panels()}, LeftRows{own_.count(), row}, FetchNothing{},
                   [&](int64_t panel, int64_t i, const T* sums) { add(ih, panel, own_.first + i, sums); });
  }

 private:
  void add(const Plain<E>& ih, int64_t panel, int64_t k, const T* sums) const {
    const int64_t I = g_.input_size, row = (m_ * g_.rows + rows_.rows[k]) * I;
    const bool second = is_second(rows_.times[k]);
    for (int v = 0; v < ih.panel_vectors(panel); ++v) {
      const int64_t column = ih.first_column(panel) + v * kLanes, n = minimum(kLanes, I - column);
      const V value = load_vector(sums + v * kLanes);
      const auto put = [&](auto* to) { store_vector(to, second ? load_vector(to, n) + value : value, n); };
      if (InputGradSums<S>::are_needed(g_))
        put(sums_ + row + column);
      else
        put(at<S>(g_.grad_input, row + column));
    }
  }

  // Whether the other direction has added its part of step t already. Within a round direction 0 comes first.
  bool is_second(int64_t t) const {
    if (g_.directions == 1) return false;
    const int64_t others = time_back(g_, 1 - d_, t) / steps_of_round(g_);
    return d_ == 0 ? others < round_ : others <= round_;
  }

  const Backward& g_;
  State state_;
  RoundRows rows_;
  T* sums_;
  int64_t round_, m_, d_;
  Range own_;
};

// Its entries in the table of phases (schedule/kernels.h).
template <class S>
struct InputGradsPass {
  static int64_t count(const Backward& g, const Plan& plan) { return g.grad_input ? g.members * plan.threads : 0; }
  static int64_t count_reverse(const Backward& g, const Plan& plan) { return g.directions > 1 ? count(g, plan) : 0; }

  // One direction after the other: both add to the same rows.
  static void run(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    InputGrads<S>({g, plan, buffer}, round, task, 0).run();
  }
  static void run_reverse(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    InputGrads<S>({g, plan, buffer}, round, task, 1).run();
  }

  // Copies the sums to the result, for a share of one member's steps.
  static int64_t count_stores(const Backward& g, const Plan& plan) {
    return InputGradSums<S>::are_needed(g) ? g.members * plan.threads : 0;
  }
  static void store_sums(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    const Arithmetic<S>* const sums = BackwardWorkspace<S>{g, plan, buffer}.input_grads().sums;
    const int64_t m = task / plan.threads;
    const Range own = part_of(g.steps, plan.threads, task % plan.threads);
    for (int64_t t = own.first; t < own.last; ++t)
      for (int64_t b = 0; b < g.batch; ++b) {
        const int64_t row = (m * g.rows + row_of(g, t, b)) * g.input_size;
        if (is_active(g, m, t, b)) store_row(at<S>(g.grad_input, row), sums + row, g.input_size);
      }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
