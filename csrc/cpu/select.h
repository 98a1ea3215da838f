#pragma once
#include "kernels.h"

namespace fused_rnn {

// The best instruction set this processor runs, or the one FUSED_RNN_ISA names (baseline, avx2, avx512). Throws when it
// names one that is unknown, not built or not supported here.
Isa best_isa();
const char* isa_name(Isa isa);
const Kernels& kernels_for(Isa isa);

// A pure function of what it is given: how a call over `problems` x `batch` rows is spread.
Plan select(Isa isa, int64_t problems, int64_t batch, int64_t threads);

}  // namespace fused_rnn
