// Accumulators of the weight gradients, and the operands of their products.
#pragma once
#include "core/dispatch.h"
#include "cpu/passes/run.h"
#include "cpu/passes/weight_grads/strip.h"

namespace fused_rnn::cpu {
namespace {

inline bool wants_weight_grads(const Backward& g) {
  bool wanted = false;
  for (int64_t d = 0; d < g.directions; ++d) {
    const WeightGradients& w = g.grads[d];
    wanted = wanted || w.ih || w.hh || w.bias_ih || w.bias_hh || w.hr;
  }
  return wanted;
}

// Layout of a weight gradient's accumulator, [rows, columns] for each group: in place; or in the workspace (elsewhere),
// if the result is 16-bit or there are several rounds. The workspace is in panels, so that the rows of a tile are
// adjacent instead of pages apart. Per-group gradients stay row-major: a second copy of all would take too much memory.
template <class S>
struct SumLayout {
  static constexpr int64_t kPanel = kMostVectors * Vec<Arithmetic<S>>::kLanes;
  static constexpr bool kConverts = sizeof(S) != sizeof(Arithmetic<S>);
  int64_t groups, rows, columns;
  bool elsewhere, in_panels;

  SumLayout(const Backward& g, int64_t rows, int64_t columns) : groups(g.weight_groups), rows(rows), columns(columns) {
    in_panels = groups == 1 && (kConverts || count_rounds(g) > 1);
    elsewhere = wants_weight_grads(g) && (kConverts || in_panels);
  }
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t group_size() const { return in_panels ? rows * panels() * kPanel : rows * columns; }
  int64_t size() const { return elsewhere ? groups * group_size() : 0; }
  int64_t width(int64_t panel) const { return minimum(kPanel, columns - panel * kPanel); }
  // Offset of row j's part in a panel.
  int64_t offset(int64_t panel, int64_t j) const {
    return in_panels ? (panel * rows + j) * kPanel : j * columns + panel * kPanel;
  }
};

// A part of the workspace, for all problems (Q).
template <class S>
struct WeightGradState {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using Layout = SumLayout<S>;

  E *x, *h, *wide_h;     // [Q, rows of a round, I or P or H]: operands in panels
  T *ih, *hh, *hr;       // [Q, ...] in SumLayout, if elsewhere; for tokens ih is always [Q, K, I, G*H]
  T *bias_ih, *bias_hh;  // [Q, K, G*H]

  static Layout layout_ih(const Backward& g) { return {g, traits_of(g.cell).gates * g.hidden, g.input_size}; }
  static Layout layout_hh(const Backward& g) { return {g, traits_of(g.cell).gates * g.hidden, g.output_size}; }
  static Layout layout_hr(const Backward& g) { return {g, g.output_size, g.hidden}; }

  static bool adds_by_token(const Backward& g) { return g.tokens && (g.grads[0].ih || g.grads[1].ih); }

  WeightGradState(const Backward& g, const Plan&, Carver& carve) {
    const int64_t Q = problems(g), QK = Q * g.weight_groups, rows = operand_rows(g);
    const int64_t GH = traits_of(g.cell).gates * g.hidden, I = g.input_size, P = g.output_size;
    x = carve.take<E>(g.tokens ? 0 : Q * Plain<E>{rows, I}.size());
    h = carve.take<E>(traits_of(g.cell).recurrent ? Q * Plain<E>{rows, P}.size() : 0);
    wide_h = carve.take<E>(projected(g) ? Q * Plain<E>{rows, g.hidden}.size() : 0);
    ih = carve.take<T>(adds_by_token(g) ? QK * GH * I : g.tokens ? 0 : Q * layout_ih(g).size());
    hh = carve.take<T>(traits_of(g.cell).recurrent ? Q * layout_hh(g).size() : 0);
    hr = carve.take<T>(projected(g) ? Q * layout_hr(g).size() : 0);
    bias_ih = carve.take<T>(QK * GH);
    bias_hh = carve.take<T>(QK * GH);
  }

  // Offset of the panels of an operand's block that starts at row k of the round.
  static int64_t operand_at(const Backward& g, int64_t problem, int64_t k, int64_t columns) {
    return problem * Plain<E>{operand_rows(g), columns}.size() + Plain<E>{k, columns}.size();
  }

 private:
  // Rows of a round, with each group's padded to padded_depth.
  static int64_t operand_rows(const Backward& g) {
    return steps_of_round(g) * g.batch + g.weight_groups * (kDepthStep<E> - 1);
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
