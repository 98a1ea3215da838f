#pragma once
#include <vector>

#include "cpu/schedule/kernels.h"

namespace fused_rnn::cpu {

// The best instruction set this processor runs, or the one FUSED_RNN_ISA names. Throws when it names one that is
// unknown, not built or not supported here.
Isa best_isa();
// What layers of this dtype run on. avx512_bf16 and amx have products of bfloat16 only, and amx makes those of float32
// of them (split.h). Where that pays for large layers only, it comes second; FUSED_RNN_ISA=amx has it for all.
std::vector<Isa> isas_for(Dtype dtype);
const char* isa_name(Isa isa);
const Kernels& kernels_for(Isa isa, Dtype dtype);

// A call's size: `problems` run side by side over `batch` rows, in all so many multiply-adds in the forward pass.
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
// row has all steps or the rows are packed, which are in that order already and all in one run.
std::vector<int64_t> order_rows(const Layer& layer, const Plan& plan);

}  // namespace fused_rnn::cpu
