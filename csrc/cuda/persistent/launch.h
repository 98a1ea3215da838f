// Launches of the persistent kernel (kernel.cuh).
#pragma once
#include "cuda/device/arrays.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {

// In global memory.
struct PersistentMemory {
  void* ring;     // ring_bytes
  void* weights;  // weight_bytes, packed
  Watch watch;
};

// Once per pass, before the first step.
void launch_pack_weights(const Plan&, const Forward&, const PersistentMemory&, void* stream);
void launch_pack_weights(const Plan&, const Backward&, const PersistentMemory&, void* stream);
// Steps first .. end - 1 in the pass's direction, for all problems.
void launch_persistent(const Plan&, const Forward&, const ForwardArrays&, int64_t first, int64_t end,
                       const PersistentMemory&, void* stream);
void launch_persistent(const Plan&, const Backward&, const BackwardArrays&, int64_t first, int64_t end,
                       const PersistentMemory&, void* stream);

int64_t weight_bytes(const Plan&, const Layer&);
// For a run of `steps` steps.
int64_t ring_bytes(const Plan&, Dtype, int64_t steps);
// The longest run whose ring stays below some tens of megabytes.
int64_t most_steps(const Plan&, Dtype);

// The kernels of each dtype (instances.cuh).
#define FUSED_RNN_DECLARE(name)                                                                             \
  void launch_##name(const Plan&, const Forward&, const ForwardArrays&, const Partition&, int64_t groups,   \
                     void* stream);                                                                         \
  void launch_##name(const Plan&, const Backward&, const BackwardArrays&, const Partition&, int64_t groups, \
                     void* stream);                                                                         \
  void pack_##name(const Plan&, const Forward&, void* to, void* stream);                                    \
  void pack_##name(const Plan&, const Backward&, void* to, void* stream);
FUSED_RNN_DECLARE(float)
FUSED_RNN_DECLARE(double)
FUSED_RNN_DECLARE(half)
FUSED_RNN_DECLARE(bfloat16)
#undef FUSED_RNN_DECLARE

}  // namespace fused_rnn::cuda
