// The rows of a round's products.
#pragma once
#include "cpu/passes/backward/state.h"

namespace fused_rnn::cpu {
namespace {

// Active rows only, in an order that does not depend on threads, in blocks of at most kRowsOfRound. Padding may hold
// anything, NaN included, and is never read.
struct RoundRows {
  int64_t count = 0;
  int64_t *slots, *rows, *times;  // of each: its index in BackwardState's arrays, and in the input; its time
  int64_t* saved;                 // its index among the problem's saved rows
  int64_t* batch_rows;            // with recurrent dropout: its row of the batch

  RoundRows(const Backward& g, Carver& carve) {
    const int64_t most = steps_of_round(g) * g.batch;
    for (int64_t** list : {&slots, &rows, &times}) *list = carve.take<int64_t>(most);
    batch_rows = carve.take<int64_t>(g.h_factor ? most : 0);
    saved = g.segment > 0 ? carve.take<int64_t>(most) : rows;
  }

  // Those of some batch rows of one problem.
  template <class S>
  void gather(const Backward& g, const BackwardState<S>& state, int64_t round, int64_t problem, Range batch) {
    const int64_t m = problem / g.directions, first = round * steps_of_round(g);
    count = 0;
    for (int64_t step = first; step < minimum(g.steps, first + steps_of_round(g)); ++step) {
      const int64_t t = time_back(g, problem % g.directions, step), slot = state.first_row(g, problem, step);
      for (int64_t b = batch.first; b < batch.last; ++b) {
        if (!is_active(g, m, t, b)) continue;
        slots[count] = slot + b;
        times[count] = t;
        if (g.h_factor) batch_rows[count] = b;
        if (g.segment > 0) saved[count] = saved_row(g, problem % g.directions, t, b);
        rows[count++] = row_of(g, t, b);
      }
    }
  }

  int64_t blocks() const { return (count + kRowsOfRound - 1) / kRowsOfRound; }
  int64_t block_size(int64_t block) const { return minimum(kRowsOfRound, count - block * kRowsOfRound); }
};

}  // namespace
}  // namespace fused_rnn::cpu
