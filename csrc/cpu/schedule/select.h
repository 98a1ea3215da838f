// Chooses a call's instruction set and its division among threads.
#pragma once
#include <span>
#include <vector>

#include "core/problem.h"
#include "cpu/schedule/isa.h"
#include "cpu/schedule/plan.h"
#include "cpu/schedule/tuning.h"

namespace fused_rnn::cpu {

// A call's size: `problems` run side by side over `batch` rows; `multiply_adds` of the whole forward pass.
struct Load {
  Dtype dtype;
  int64_t problems, batch, rows, hidden;
  int64_t weights, recurrent_weights;  // of one problem; without W_ih if the input is tokens
  int64_t multiply_adds;
  int64_t stretches;  // of a step, after each of which shares of the units wait for each other
  bool packed;        // its weights are packed already
  bool whole_lines;   // each row of a weight fills cache lines
  bool quantized;     // has weights of 8 bits
};

Load load_of(const Layer& layer);

// The thresholds of tuning.h that this file's choices rest on and that can be measured where they run (Python's
// `tune`). None may depend on the number of threads, as results must not.
struct Thresholds {
  int64_t least_work_for_threads = kLeastWorkForThreads;
  int64_t least_rows_to_pack_half = kLeastRowsToPackHalf, least_rows_to_pack_bfloat16 = kLeastRowsToPackBFloat16;
  int64_t least_rows_to_pack_few = kLeastRowsToPackFew, least_rows_to_pack_many = kLeastRowsToPackMany;
  int64_t least_rows_to_pack_most = kLeastRowsToPackMost;
  int64_t rows_to_share_some = kRowsToShareSome, rows_to_share_many = kRowsToShareMany;
};
constexpr int64_t kThresholds = sizeof(Thresholds) / sizeof(int64_t);

Thresholds current_thresholds();
void set_thresholds(const Thresholds& thresholds);

// A pure function: which of `isas` a call runs on, and how it is divided among at most `threads` threads.
Plan select(std::span<const Isa> isas, const Load& load, int64_t threads, const Thresholds& thresholds = {});

// Plan::order: the batch rows by decreasing length, dealt to the runs in turn to balance them. Empty if all rows have
// all steps.
std::vector<int64_t> order_rows(const Layer& layer, const Plan& plan);

}  // namespace fused_rnn::cpu
