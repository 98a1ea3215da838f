// Which instruction sets there are, and the kernels compiled for them.
#pragma once
#include <vector>

#include "cpu/schedule/kernels.h"

namespace fused_rnn::cpu {

enum class Isa : int { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best instruction set this processor runs, or the one FUSED_RNN_ISA names. Throws when it names one that is
// unknown, not built or not supported here.
Isa best_isa();
// What layers of this dtype run on. avx512_bf16 and amx multiply bfloat16 only, and amx makes products of float32 from
// those (gemm/split.h). Where that pays for large layers only, it comes second; FUSED_RNN_ISA=amx has it for all.
std::vector<Isa> isas_for(Dtype dtype);
const char* isa_name(Isa isa);
const Kernels& kernels_for(Isa isa, Dtype dtype);

}  // namespace fused_rnn::cpu
