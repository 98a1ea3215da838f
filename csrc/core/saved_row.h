// One row of `saved`: one step of one batch row and direction.
//
//   kept  [kSaved, H]   the values that the cell saves
//   h     [P]           as it entered the step
//   c     [W]           as it entered the step; cells with a second state only
//   with layer norm: W_ih x and W_hh h normalised [G*H], c normalised [H] if it is, and 1 / the deviation of each [3]
//
// The CPU engine interleaves the values in groups of 16 units, [H / 16, kSaved, 16], unless there is a projection: so a
// cell accesses consecutive cache lines, which the hardware prefetcher follows. The layout of `kept` is each engine's
// own; fused_rnn/autograd/tangents.py reads h.
//
// With segments (Layer::segment) there are rows of one segment only, [segment, B] of each problem. Steps of the loop are
// counted from its end: the last segment is whole, the first one has what is left.
#pragma once
#include "core/cell_traits.h"
#include "core/problem.h"

namespace fused_rnn {
namespace {

// `kept`: the cell's kSaved.
FUSED_RNN_FN int64_t entering_h(const Layer& layer, int64_t kept) { return kept * layer.hidden; }
FUSED_RNN_FN int64_t entering_c(const Layer& layer, int64_t kept) {
  return entering_h(layer, kept) + layer.output_size;
}
// State k >= 1.
FUSED_RNN_FN int64_t entering_state(const Layer& layer, int64_t kept, int64_t k) {
  return entering_c(layer, kept) + (k - 1) * layer.hidden;
}
// With layer norm.
FUSED_RNN_FN int64_t normalised_x(const Layer& layer, const CellTraits& cell) {
  return entering_state(layer, cell.saved, cell.states);
}
FUSED_RNN_FN int64_t normalised_r(const Layer& layer, const CellTraits& cell) {
  return normalised_x(layer, cell) + cell.gates * layer.hidden;
}
FUSED_RNN_FN int64_t normalised_c(const Layer& layer, const CellTraits& cell) {
  return normalised_r(layer, cell) + cell.recurrent * cell.gates * layer.hidden;
}
FUSED_RNN_FN int64_t norm_scales(const Layer& layer, const CellTraits& cell) {
  return normalised_c(layer, cell) + (normalizes_c(layer) ? layer.hidden : 0);
}
FUSED_RNN_FN int64_t saved_width(const Layer& layer, const CellTraits& cell) {
  return normalizes(layer) ? norm_scales(layer, cell) + 3 : entering_state(layer, cell.saved, cell.states);
}

// With layer norm, a unit's sums over rows for the gradients of the norms' gains and biases: the place of each, in order.
// Of a cell whose gradients of x and r are equal, the bias of r has that of x.
struct NormSums {
  int64_t gain_x, bias_x, gain_r, bias_r, gain_c, bias_c, count;
};
FUSED_RNN_FN NormSums norm_sums(const Layer& layer, const CellTraits& cell) {
  if (!normalizes(layer)) return {};
  const int64_t G = cell.gates, of_r = 2 * G, bias_r = of_r + cell.recurrent * G;
  const int64_t of_c = bias_r + (cell.recurrent && !cell.one_gate_gradient ? G : 0);
  return {0, G, of_r, cell.one_gate_gradient ? G : bias_r, of_c, of_c + 1, of_c + 2 * normalizes_c(layer)};
}

// Offset of a unit's saved value k.
FUSED_RNN_FN int64_t kept_at(const Layer& layer, int64_t k, int64_t unit) { return k * layer.hidden + unit; }

// Rows of one problem, and the place of row (t, b) of direction d among them.
FUSED_RNN_FN int64_t saved_rows(const Layer& layer) {
  return layer.segment > 0 ? layer.segment * layer.batch : layer.rows;
}
FUSED_RNN_FN int64_t saved_row(const Layer& layer, int64_t d, int64_t t, int64_t b) {
  if (layer.segment == 0) return row_of(layer, t, b);
  return (d == 0 ? layer.steps - 1 - t : t) % layer.segment * layer.batch + b;
}

FUSED_RNN_FN int64_t segments(const Layer& layer) { return (layer.steps + layer.segment - 1) / layer.segment; }
// The place of the states of row b that enter the loop's step `step`, the first of its segment, in Forward::kept.
FUSED_RNN_FN int64_t kept_states_at(const Layer& layer, int64_t problem, int64_t step, int64_t b, int64_t width) {
  const int64_t segment = (layer.steps - 1 - step) / layer.segment;
  return ((problem * segments(layer) + segment) * layer.batch + b) * width;
}

constexpr int64_t kUnitsKeptTogether = 16;
FUSED_RNN_FN int64_t kept_in_groups_at(const Layer& layer, int64_t kept, int64_t k, int64_t unit) {
  if (projected(layer)) return kept_at(layer, k, unit);
  const int64_t first = unit / kUnitsKeptTogether * kUnitsKeptTogether, left = layer.hidden - first;
  return first * kept + k * (left < kUnitsKeptTogether ? left : kUnitsKeptTogether) + unit - first;
}

}  // namespace
}  // namespace fused_rnn
