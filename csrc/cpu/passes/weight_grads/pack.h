// Packs the right operands of the weight gradients: x and h of one round.
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
    t_.for_groups([&](int64_t, int64_t first) {
      if (t_.has_few_rows()) return;
      const Rows<S> x = t_.input_rows(), h = t_.hidden_rows();
      if (t_.out.ih && !g.tokens) pack(t_.sums.x, g.input_size, first, [&](int64_t k) { return x[k]; });
      if (t_.out.hh) pack(t_.sums.h, g.output_size, first, [&](int64_t k) { return h[k]; });
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
