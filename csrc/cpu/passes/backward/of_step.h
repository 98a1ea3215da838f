// The rows of a backward step, and the table of what computes them.
#pragma once
#include "cpu/passes/backward/state.h"
#include "cpu/passes/saved.h"

namespace fused_rnn::cpu {
namespace {

// The rows of a run in one step, whatever the cell.
template <class S>
class BackwardRows {
  using E = Element<S>;

 public:
  using ThisRun = BackwardRun<S>;

  BackwardRows(const ThisRun& run, const BackwardStep& step) : r_(run), step_(step) {}

  // Row i's gradients of r in the previous step of the loop; zeros if none propagate from there.
  const E* incoming_gates(int64_t i) const {
    const Row row(*this, i);
    if (!row.was_active || row.cut) return r_.state.zeros;
    return r_.state.gates_r + (step_.previous_slot + row.b) * r_.state.gate_stride;
  }
  // With a projection: row i of dL/dh.
  const E* output_gradient(int64_t i) const {
    if (i >= step_.rows) return r_.state.zeros;
    return r_.state.outputs + (step_.slot + r_.run.batch_row(i)) * r_.state.output_stride;
  }

  // Prefetches what BackwardCells::hidden will read.
  void fetch(const Plain<E>& hh, int64_t panel, int64_t i) const {
    const Backward& g = r_.g;
    const CellTraits& cell = r_.state.cell;
    if (i >= step_.rows) return;
    const int64_t b = r_.run.batch_row(i), first = hh.first_column(panel);
    const Units units = {first, minimum(hh.panel_vectors(panel) * Vec<Arithmetic<S>>::kLanes, g.output_size - first)};
    if (g.grad_output) fetch_row(at<S>(g.grad_output, r_.by_row(step_.t, b, g.output_size) + first), units.count);
    const S* const saved = at<S>(g.saved, r_.saved_at(step_.t, b));
    if (!projected(g)) fetch_saved(cell, g, saved, units, cell.reads_h != 0, &fetch_row<S>);
    if (normalizes(g)) fetch_normalised(cell, g, saved, units, &fetch_row<S>);
  }

 protected:
  // Row i of the run in this step.
  struct Row {
    int64_t b;
    bool active;      // in this step; if not, its gradients are those of the initial states
    bool was_active;  // in the previous step of the loop
    bool cut;         // that step began with a reset: no gradient passes it

    FUSED_RNN_INLINE Row(const BackwardRows& rows, int64_t i) {
      const ThisRun& r = rows.r_;
      const BackwardStep& step = rows.step_;
      b = r.run.batch_row(i);
      active = i < step.rows;
      was_active = i < step.previous_rows;
      cut = r.g.reset && was_active && is_reset(r.g, r.run.m, r.run.d, step.previous_t, b);
    }
  };

  const ThisRun& r_;
  const BackwardStep& step_;
};

// The epilogues: for row i and the columns of a panel. Pointers to them let the loop serve all cells.
template <class S>
struct BackwardEpilogues {
  using Epilogue = void (*)(const BackwardRows<S>&, const Plain<Element<S>>&, int64_t panel, int64_t i,
                            const Arithmetic<S>* sums);
  Epilogue hidden, before_projection;
  // Where c is normalised: the cell of a row, for some panels.
  void (*normed)(const BackwardRows<S>&, const Plain<Element<S>>&, Range panels, int64_t i);
};

}  // namespace
}  // namespace fused_rnn::cpu
