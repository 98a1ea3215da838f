// The backward pass runs in rounds of some hundred rows, whose gate gradients are still cached when the weight
// gradients read them.
#pragma once
#include "core/problem.h"
#include "cpu/gemm/element.h"
#include "cpu/schedule/tuning.h"

namespace fused_rnn::cpu {
namespace {

// Per group of weight gradients.
constexpr int64_t kRowsOfRound = kParts<Element<float>> > 1 ? kRoundRowsSplit : kRoundRows;

inline int64_t steps_of_round(const Backward& g) {
  return minimum(g.steps, maximum(1, kRowsOfRound * g.weight_groups / maximum(1, g.batch)));
}
inline int64_t count_rounds(const Backward& g) { return (g.steps + steps_of_round(g) - 1) / steps_of_round(g); }

// The time of step `step` of direction d's loop.
inline int64_t time_back(const Backward& g, int64_t d, int64_t step) { return d == 0 ? g.steps - 1 - step : step; }

}  // namespace
}  // namespace fused_rnn::cpu
