// The loop of the backward pass: a run, or a member's shares of its units, back through the steps of one round.
#pragma once
#include "cpu/passes/backward/cell.h"
#include "cpu/passes/backward/norm.h"

namespace fused_rnn::cpu {
namespace {

template <class S>
class BackwardLoop {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using State = BackwardState<S>;

 public:
  BackwardLoop(const Backward& g, const Plan& plan, void* buffer, int64_t task, const BackwardEpilogues<S>& cell)
      : cell_(cell),
        w_(g, plan, buffer, task / plan.unit_chunks),
        hh_(w_.state.right(g, State::hidden_weights(g), w_.state.hh, &Weights::hh, w_.run.problem)),
        member_(task % plan.unit_chunks) {}

  void run(int64_t round) {
    const Backward& g = w_.g;
    const int64_t stretches = 1 + projected(g) + normalizes_c(g) + normalizes(g);  // of a step
    const int64_t first = round * steps_of_round(g), end = minimum(g.steps, first + steps_of_round(g));
    const int64_t last = end == g.steps ? end : end - 1;  // step g.steps: gradients of the initial states
    w_.team.join(member_);
    step_ = first > 0 ? step_before(first) : BackwardStep{};
    for (step_.number = first; step_.number <= last; ++step_.number) {
      step_.previous_t = step_.t;
      step_.previous_rows = step_.rows;
      step_.previous_slot = step_.slot;
      step_.t = step_.number < g.steps ? time_back(g, w_.run.d, step_.number) : -1;
      step_.rows = step_.number < g.steps ? w_.run.active(step_.t, step_.previous_rows) : 0;
      step_.slot = w_.state.first_row(g, w_.run.problem, step_.number);
      int64_t stretch = step_.number * stretches;
      w_.team.together(member_, stretch++, [&](int64_t share) { hidden(share); });
      if (projected(g)) w_.team.together(member_, stretch++, [&](int64_t share) { before_projection(share); });
      if (normalizes_c(g)) w_.team.together(member_, stretch++, [&](int64_t share) { before_norm(share); });
      if (normalizes(g)) w_.team.together(member_, stretch++, [&](int64_t share) { through_norm(share); });
    }
    w_.team.leave(member_);
  }

 private:
  // The last step of the previous round.
  BackwardStep step_before(int64_t number) const {
    BackwardStep step = {};
    step.t = time_back(w_.g, w_.run.d, number - 1);
    step.rows = w_.run.active(step.t, 0);
    step.slot = w_.state.first_row(w_.g, w_.run.problem, number - 1);
    return step;
  }

  // A share's panels. The direction alternates from step to step, so that the last panels are still cached.
  PanelRange share_of(const Plain<E>& matrix, int64_t share, bool back) const {
    return panels_of(part_of(matrix.panels(), w_.plan.unit_chunks, share), back);
  }

  // dL/dh of one share of h: W_hh^T times the gates' gradients of the previous step. Without a projection the cell is
  // the epilogue of each tile.
  void hidden(int64_t share) const {
    const Plain<E> hh = State::hidden_weights(w_.g);
    const int64_t rows = maximum(step_.rows, step_.previous_rows);
    const PanelRange range = share_of(hh, share, step_.number % 2 == 1);
    const BackwardRows<S> of_step(w_, step_);
    const auto use = [&](int64_t panel, int64_t i, const T* sums) { cell_.hidden(of_step, hh, panel, i, sums); };
    const bool is_wanted = step_.rows > 0 || w_.g.grad_h0;  // the last step is only for the initial states
    if (w_.state.cell.recurrent && step_.previous_rows > 0 && is_wanted) {
      const auto row = [&](int64_t i) { return of_step.incoming_gates(i); };
      const auto fetch = [&](int64_t panel, int64_t i) { of_step.fetch(hh, panel, i); };
      return multiply_right(hh, hh_, range, LeftRows{rows, row, 1, w_.g.batch == 1}, fetch, use);
    }
    for (int64_t panel = range.first; panel < range.last; ++panel)
      for (int64_t i = 0; i < rows; ++i) use(panel, i, w_.state.zero_sums);
  }

  // With a projection: the gradient of h before it, and the cell.
  void before_projection(int64_t share) const {
    const Plain<E> hr = State::projection(w_.g);
    const BackwardRows<S> of_step(w_, step_);
    const auto row = [&](int64_t i) { return of_step.output_gradient(i); };
    multiply(hr, w_.state.hr + w_.run.problem * hr.size(), share_of(hr, share, false),
             LeftRows{maximum(step_.rows, step_.previous_rows), row, 1, w_.g.batch == 1}, FetchNothing{},
             [&](int64_t panel, int64_t i, const T* sums) { cell_.before_projection(of_step, hr, panel, i, sums); });
  }

  // Where c is normalised: the cell, which `hidden` has left for now.
  __attribute__((noinline)) void before_norm(int64_t share) const {
    const Plain<E> hh = State::hidden_weights(w_.g);
    const BackwardRows<S> of_step(w_, step_);
    for (int64_t i = 0; i < step_.rows; ++i)
      cell_.normed(of_step, hh, part_of(hh.panels(), w_.plan.unit_chunks, share), i);
  }

  // With layer norm: the gradients of W_hh h.
  __attribute__((noinline)) void through_norm(int64_t share) const {
    const Plain<E> hh = State::hidden_weights(w_.g);
    const NormedGradients<S> of_step(w_, step_);
    for (int64_t i = 0; i < step_.rows; ++i) of_step.gates(hh, part_of(hh.panels(), w_.plan.unit_chunks, share), i);
  }

  const BackwardEpilogues<S>& cell_;
  const BackwardRun<S> w_;
  const RightOperand<E> hh_;
  const int64_t member_;
  BackwardStep step_;
};

}  // namespace
}  // namespace fused_rnn::cpu
