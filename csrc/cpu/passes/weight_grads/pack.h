// The right operands of the weight gradients, x and h of the steps of one round, into panels.
#pragma once
#include "cpu/passes/weight_grads/task.h"

namespace fused_rnn::cpu {
namespace {

template <class S>
class OperandPacker {
  using E = Element<S>;
  using WeightState = WeightGradState<S>;

 public:
  OperandPacker(const BackwardWorkspace<S>& space, int64_t round, int64_t task) : t_(space, round, task) {}

  void run() {
    const Backward& g = t_.g;
    const auto& state = t_.state;
    const RoundRows& rows = t_.rows;
    const int64_t I = g.input_size, P = g.output_size, R = g.saved_width;
    const S* x = at<S>(g.input, t_.m * g.input_member_stride);
    const S* h = at<S>(g.saved, t_.problem * g.rows * R) + entering_h(g, state.cell.saved);
    t_.for_groups([&](int64_t, int64_t first) {
      if (t_.out.ih && !g.tokens) pack(t_.sums.x, I, first, [&](int64_t k) { return x + rows.rows[k] * I; });
      if (t_.out.hh) pack(t_.sums.h, P, first, [&](int64_t k) { return h + rows.rows[k] * R; });
      if (t_.out.hr)
        pack(t_.sums.wide_h, g.hidden, first,
             [&](int64_t k) { return state.wide_h + rows.slots[k] * state.wide_stride; });
    });
  }

 private:
  template <class Row>
  void pack(E* to, int64_t columns, int64_t first, Row row) const {
    for (int64_t block = 0; block < t_.rows.blocks(); ++block) {
      const int64_t k0 = block * kRowsOfRound;
      const Plain<E> matrix = {t_.rows.block_size(block), columns};
      E* const operand = to + WeightState::operand_at(t_.g, t_.problem, first + k0, columns);
      const Range own = t_.share_of(matrix.panels());
      for (int64_t panel = own.first; panel < own.last; ++panel)
        matrix.pack(operand, panel, [&](int64_t k) { return row(k0 + k); });
    }
  }

  WeightGradTask<S> t_;
};

}  // namespace
}  // namespace fused_rnn::cpu
