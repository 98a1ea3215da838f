// How a call is spread over instruction sets and threads.
#pragma once
#include <vector>

#include "core/problem.h"
#include "cpu/schedule/isa.h"
#include "cpu/schedule/plan.h"

namespace fused_rnn::cpu {

// A call's size: `problems` run side by side over `batch` rows; `multiply_adds` of the whole forward pass.
struct Load {
  Dtype dtype;
  int64_t problems, batch, rows, hidden;
  int64_t weights, recurrent_weights;  // of one problem; of tokens only those that are multiplied
  int64_t multiply_adds;
  bool packed;  // its weights are packed already
};

Load load_of(const Layer& layer);

// A pure function of what it is given: which of its dtype's instruction sets a call runs on, and how it is spread over
// at most `threads` threads.
Plan select(const std::vector<Isa>& isas, const Load& load, int64_t threads);

// Plan::order: the batch rows by falling length, dealt out so that all runs get long and short ones. Empty when every
// row has all steps.
std::vector<int64_t> order_rows(const Layer& layer, const Plan& plan);

}  // namespace fused_rnn::cpu
