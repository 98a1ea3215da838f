// The kernels of one instruction set: a forward and a backward pass, each a sequence of phases of independent tasks.
#pragma once
#include "core/problem.h"
#include "cpu/schedule/plan.h"

namespace fused_rnn::cpu {

// Tasks 0 .. count(args, plan) - 1 may run concurrently, in any order; phases run one after another.
template <class Args>
struct Phase {
  int64_t (*count)(const Args&, const Plan&);
  void (*run)(const Args&, const Plan&, void* workspace, int64_t round, int64_t task);
};

constexpr int kMostPhases = 5;

// `first` runs once, then `each`, in turn, for every round, then `last` once. An entry with a null `run` is skipped. A
// round is some steps of the loop; all of them without `steps_of_round`.
template <class Args>
struct Pass {
  int64_t (*workspace_bytes)(const Args&, const Plan&);
  int64_t (*steps_of_round)(const Args&);
  Phase<Args> first[kMostPhases], each[kMostPhases], last[kMostPhases];
};

// The weights as the forward pass reads them, for Layer::packed.
struct Packing {
  int64_t (*bytes)(const Forward&, const Plan&);
  Phase<Forward> phase;  // packs into its workspace
};

struct Kernels {
  const Pass<Forward>& (*forward)(int64_t cell, Dtype dtype);
  const Packing& (*packing)(int64_t cell, Dtype dtype);
  const Pass<Backward>& (*backward)(int64_t cell, Dtype dtype);
};
// Of float layers whose weights are packed in 8 bits.
struct Int8Kernels {
  const Pass<Forward>& (*forward)(int64_t cell, WeightFormat format);
  const Packing& (*packing)(int64_t cell, WeightFormat format);
};

// One for each build of kernels.cpp, and of int8_kernels.cpp.
extern const Kernels kKernelsBaseline;
extern const Int8Kernels kInt8KernelsBaseline;
#ifdef FUSED_RNN_X86_ISAS
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
extern const Kernels kKernelsAvx512Bf16;  // these for one dtype each
extern const Kernels kKernelsAmxBf16;
extern const Kernels kKernelsAmxFp32;
extern const Int8Kernels kInt8KernelsAvx2;
extern const Int8Kernels kInt8KernelsAvxVnni;
extern const Int8Kernels kInt8KernelsAvx512Vnni;
extern const Int8Kernels kInt8KernelsAmxInt8;  // for WeightFormat::kInt8
#endif
#ifdef FUSED_RNN_ARM_ISAS
extern const Kernels kKernelsNeonBf16;  // for bfloat16 alone
extern const Int8Kernels kInt8KernelsNeonDot;
extern const Int8Kernels kInt8KernelsNeonI8Mm;
#endif

}  // namespace fused_rnn::cpu
