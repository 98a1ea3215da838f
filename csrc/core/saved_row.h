// One row of `saved`: what a step keeps of one batch row and direction, for the backward pass.
//
//   kept  [kSaved, H]   what the cell keeps
//   h     [P]           as it entered the step
//   c     [H]           as it entered the step; cells with a second state only
//
// The CPU keeps the values of 16 units together, [H / 16, kSaved, 16], but not with a projection: a cell then reads and
// writes consecutive cache lines, which the hardware prefetcher follows. The engines decide how they lay out `kept`;
// fused_rnn/autograd/tangents.py reads h.
#pragma once
#include "core/problem.h"

namespace fused_rnn {
namespace {

// `kept`: kSaved of the cell.
FUSED_RNN_FN int64_t entering_h(const Layer& layer, int64_t kept) { return kept * layer.hidden; }
FUSED_RNN_FN int64_t entering_c(const Layer& layer, int64_t kept) {
  return entering_h(layer, kept) + layer.output_size;
}
FUSED_RNN_FN int64_t saved_width(const Layer& layer, int64_t kept, int64_t states) {
  return entering_c(layer, kept) + (states - 1) * layer.hidden;
}

// Value k of what the cell keeps of a unit.
FUSED_RNN_FN int64_t kept_at(const Layer& layer, int64_t k, int64_t unit) { return k * layer.hidden + unit; }

constexpr int64_t kUnitsKeptTogether = 16;
FUSED_RNN_FN int64_t kept_in_groups_at(const Layer& layer, int64_t kept, int64_t k, int64_t unit) {
  if (projected(layer)) return kept_at(layer, k, unit);
  const int64_t first = unit / kUnitsKeptTogether * kUnitsKeptTogether, left = layer.hidden - first;
  return first * kept + k * (left < kUnitsKeptTogether ? left : kUnitsKeptTogether) + unit - first;
}

}  // namespace
}  // namespace fused_rnn
