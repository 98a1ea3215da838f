// What an instruction set offers the engine: a forward and a backward pass as phases of independent tasks.
#pragma once
#include "../problem.h"
#include "plan.h"

namespace fused_rnn {

constexpr int kMaxPhases = 5;

// Tasks 0 .. count(args, plan) - 1 may run at the same time, in any order; phases run one after another.
template <class Args>
struct Phase {
  int64_t (*count)(const Args&, const Plan&);
  void (*run)(const Args&, const Plan&, void* workspace, int64_t task);
};

template <class Args>
struct Pass {
  int64_t (*workspace_bytes)(const Args&, const Plan&);
  Phase<Args> phases[kMaxPhases];  // those past the last have a null `run`
};

struct Kernels {
  const Pass<Forward>& (*forward)(int64_t cell, Dtype dtype);
  const Pass<Backward>& (*backward)(int64_t cell, Dtype dtype);
};

// One for each build of engine.cpp.
extern const Kernels kKernelsBaseline;
#ifdef FUSED_RNN_X86_ISAS
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
#endif

}  // namespace fused_rnn
