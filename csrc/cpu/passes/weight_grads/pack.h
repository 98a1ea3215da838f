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
      if (t_.out.hh && g.h_factor)
        pack_masked(h, first);
      else if (t_.out.hh)
        pack(t_.sums.h, g.output_size, first, [&](int64_t k) { return h[k]; });
      if (t_.out.hr)
        pack(t_.sums.wide_h, g.hidden, first,
             [&](int64_t k) { return state.wide_h + rows.slots[k] * state.wide_stride; });
    });
  }

 private:
  // f(a block of an operand, where its panels lie, panel, the block's first row) for the share's panels.
  template <class F>
  void for_panels(E* to, int64_t columns, int64_t first, F f) const {
    for (int64_t block = 0; block < t_.rows.blocks(); ++block) {
      const int64_t k0 = block * kRowsOfRound;
      const Plain<E> matrix = {t_.rows.block_size(block), columns};
      E* const operand = to + WeightState::operand_at(t_.g, t_.problem, first + k0, columns);
      const Range own = t_.share_of(matrix.panels());
      for (int64_t panel = own.first; panel < own.last; ++panel) f(matrix, operand, panel, k0);
    }
  }

  template <class Row>
  void pack(E* to, int64_t columns, int64_t first, Row row) const {
    for_panels(to, columns, first, [&](const Plain<E>& matrix, E* operand, int64_t panel, int64_t k0) {
      matrix.pack(operand, panel, [&](int64_t k) { return row(k0 + k); });
    });
  }

  // With recurrent dropout: h times its factor, panel by panel.
  void pack_masked(const Rows<S>& h, int64_t first) const {
    using V = Vec<Arithmetic<S>>;
    constexpr int64_t kPanel = TaskScratch<S>::kPanel;
    const int64_t P = t_.g.output_size;
    for_panels(t_.sums.h, P, first, [&](const Plain<E>& matrix, E* operand, int64_t panel, int64_t k0) {
      const int64_t column = matrix.first_column(panel), width = minimum(kPanel, P - column);
      for (int64_t k = 0; k < matrix.depth; ++k) {
        const int64_t b = t_.rows.batch_rows[k0 + k];
        const S* factor = at<S>(t_.g.h_factor, (t_.problem * t_.g.batch + b) * P + column);
        for (int64_t j = 0; j < width; j += V::kLanes) {
          const int64_t n = minimum(V::kLanes, width - j);
          const V masked = load_vector(h[k0 + k] + column + j, n) * load_vector(factor + j, n);
          store_vector(t_.masked_h + k * kPanel + j, masked, n);
        }
      }
      const auto row = [&](int64_t k) { return t_.masked_h + k * kPanel; };
      Plain<E>{matrix.depth, width}.pack(operand + matrix.offset(panel), 0, row);
    });
  }

  WeightGradTask<S> t_;
};

}  // namespace
}  // namespace fused_rnn::cpu
