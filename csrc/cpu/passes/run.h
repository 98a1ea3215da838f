// How the work of a layer is divided: ranges, and runs of batch rows.
#pragma once
#include "core/problem.h"
#include "cpu/gemm/panels.h"
#include "cpu/schedule/plan.h"

namespace fused_rnn::cpu {
namespace {

// A contiguous range of rows, panels or columns.
struct Range {
  int64_t first, last;

  int64_t count() const { return last - first; }
};

// Part i of [0, n) split evenly into `parts`.
inline Range part_of(int64_t n, int64_t parts, int64_t i) { return {n * i / parts, n * (i + 1) / parts}; }
inline int64_t largest_part(int64_t n, int64_t parts) { return (n + parts - 1) / parts; }

inline PanelRange panels_of(Range range, bool back = false) { return {range.first, range.last, back}; }

// Some neighbouring hidden units: one vector of them at most, where not said otherwise.
struct Units {
  int64_t first, count;
};

inline int64_t problems(const Layer& layer) { return layer.members * layer.directions; }

// A run: some batch rows of one problem, which go through time together. Row i of the run is batch row `batch_row(i)`.
// The rows are in order of falling length, so the rows that take part in a step are always the first ones.
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

  // How many rows take part in step t. `nearby`: that number for a neighbouring step, where the search begins.
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
