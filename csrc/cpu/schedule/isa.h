// The instruction sets, and the kernels compiled for them.
#pragma once
#include <span>

#include "cpu/schedule/kernels.h"

namespace fused_rnn::cpu {

enum class Isa : int {
  kBaseline,
  kAvx2,
  kAvxVnni,
  kAvx512,
  kAvx512Vnni,
  kAvx512Bf16,
  kAmx,
  kNeonDot,
  kNeonI8Mm,
  kNeonBf16
};

// The best instruction set that this processor supports, or the one that FUSED_RNN_ISA names. Throws if that one is
// unknown, not built or not supported.
Isa best_isa();
// The instruction sets for layers of this dtype. avx512_bf16 and amx are for bfloat16, amx for float32 too (split
// floats, gemm/split.h). If those pay for large layers only, amx comes second; FUSED_RNN_ISA=amx uses them for all.
// avx_vnni and avx512_vnni are for weights of 8 bits, amx for those with rows of 8 bits too; other layers then run on
// avx2 and avx512. On ARM the baseline is NEON; neon_dot and neon_i8mm are for weights of 8 bits, neon_bf16 is for
// bfloat16. Cells of more gates than kMostVectors do not fit tiles.
std::span<const Isa> isas_for(Dtype dtype, WeightFormat format = WeightFormat::kOwn, int64_t gates = 1);
const char* isa_name(Isa isa);
const Kernels& kernels_for(Isa isa, Dtype dtype);
const Int8Kernels& int8_kernels_for(Isa isa);

}  // namespace fused_rnn::cpu
