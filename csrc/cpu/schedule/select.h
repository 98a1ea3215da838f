// Chooses a call's instruction set and its division among threads.
#pragma once
#include <span>
#include <vector>

#include "core/problem.h"
#include "cpu/schedule/isa.h"
#include "cpu/schedule/plan.h"

namespace fused_rnn::cpu {

// A call's size: `problems` run side by side over `batch` rows; `multiply_adds` of the whole forward pass.
struct Load {
  Dtype dtype;
  int64_t problems, batch, rows, hidden;
  int64_t weights, recurrent_weights;  // of one problem; without W_ih if the input is tokens
  int64_t multiply_adds;
  bool packed;  // its weights are packed already
};

Load load_of(const Layer& layer);

// A pure function: which of `isas` a call runs on, and how it is divided among at most `threads` threads.
Plan select(std::span<const Isa> isas, const Load& load, int64_t threads);

// Plan::order: the batch rows by decreasing length, dealt to the runs in turn to balance them. Empty if all rows have
// all steps.
std::vector<int64_t> order_rows(const Layer& layer, const Plan& plan);

}  // namespace fused_rnn::cpu
