// The instruction sets, and the kernels compiled for them.
#pragma once
#include <span>

#include "cpu/schedule/kernels.h"

namespace fused_rnn::cpu {

enum class Isa : int { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best instruction set that this processor supports, or the one that FUSED_RNN_ISA names. Throws if that one is
// unknown, not built or not supported.
Isa best_isa();
// The instruction sets for layers of this dtype. avx512_bf16 and amx are for bfloat16, amx for float32 too (split
// floats, gemm/split.h). If those pay for large layers only, amx comes second; FUSED_RNN_ISA=amx uses them for all.
std::span<const Isa> isas_for(Dtype dtype);
const char* isa_name(Isa isa);
const Kernels& kernels_for(Isa isa, Dtype dtype);

}  // namespace fused_rnn::cpu
