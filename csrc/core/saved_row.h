// One row of `saved`: one step of one batch row and direction.
//
//   kept  [kSaved, H]   the values that the cell saves
//   h     [P]           as it entered the step
//   c     [W]           as it entered the step; cells with a second state only
//
// The CPU engine interleaves the values in groups of 16 units, [H / 16, kSaved, 16], unless there is a projection: so a
// cell accesses consecutive cache lines, which the hardware prefetcher follows. The layout of `kept` is each engine's
// own; fused_rnn/autograd/tangents.py reads h.
#pragma once
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
FUSED_RNN_FN int64_t saved_width(const Layer& layer, int64_t kept, int64_t states) {
  return entering_c(layer, kept) + (states - 1) * layer.hidden;
}

// Offset of a unit's saved value k.
FUSED_RNN_FN int64_t kept_at(const Layer& layer, int64_t k, int64_t unit) { return k * layer.hidden + unit; }

constexpr int64_t kUnitsKeptTogether = 16;
FUSED_RNN_FN int64_t kept_in_groups_at(const Layer& layer, int64_t kept, int64_t k, int64_t unit) {
  if (projected(layer)) return kept_at(layer, k, unit);
  const int64_t first = unit / kUnitsKeptTogether * kUnitsKeptTogether, left = layer.hidden - first;
  return first * kept + k * (left < kUnitsKeptTogether ? left : kUnitsKeptTogether) + unit - first;
}

}  // namespace
}  // namespace fused_rnn
