// Division of a layer's work: ranges, and runs of batch rows.
#pragma once
#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/schedule/plan.h"

namespace fused_rnn::cpu {
namespace {

inline PanelRange panels_of(Range range, bool back = false) { return {range.first, range.last, back}; }

// Consecutive hidden units: at most one vector of them unless stated otherwise.
struct Units {
  int64_t first, count;
};

inline int64_t problems(const Layer& layer) { return layer.members * layer.directions; }

// A run: some batch rows of one problem, which share a time loop. Row i of the run is batch row `batch_row(i)`. The
// rows are sorted by decreasing length, so the active rows of a step are always the first ones.
class Run {
 public:
  int64_t problem, m, d, rows;

  Run(const Layer& layer, const Plan& plan, int64_t number)
      : problem(number / plan.row_chunks),
        m(problem / layer.directions),
        d(problem % layer.directions),
        layer_(layer),
        order_(plan.order ? plan.order + (layer.lengths_member_stride ? m * layer.batch : 0) : nullptr) {
    const Range own = part_of(layer.batch, plan.row_chunks, number % plan.row_chunks);
    first_ = own.first;
    rows = own.count();
  }

  int64_t batch_row(int64_t i) const { return order_ ? order_[first_ + i] : first_ + i; }

  // The number of active rows in step t. `nearby`: that of a neighbouring step, where the search starts.
  int64_t active(int64_t t, int64_t nearby) const {
    if (!layer_.lengths) return rows;
    while (nearby < rows && is_active(layer_, m, t, batch_row(nearby))) ++nearby;
    while (nearby > 0 && !is_active(layer_, m, t, batch_row(nearby - 1))) --nearby;
    return nearby;
  }

 private:
  const Layer& layer_;
  int64_t first_;
  const int64_t* order_;
};
inline int64_t count_runs(const Layer& layer, const Plan& plan) { return problems(layer) * plan.row_chunks; }
// One for each run and member of its team.
inline int64_t count_loops(const Layer& layer, const Plan& plan) { return count_runs(layer, plan) * plan.unit_chunks; }

}  // namespace
}  // namespace fused_rnn::cpu
