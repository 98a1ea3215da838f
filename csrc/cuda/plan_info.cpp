// What Python asks about plans, through ctypes; also of GPUs that are not there.
#include <cstdio>
#include <cstring>
#include <exception>

#include "cuda/plan.h"

using namespace fused_rnn;

// Fills `plan` with the plan's numbers: blocks' kind (-1: stepwise), units, blocks, columns, groups, groups_at_once,
// then the shape's number; `reason` says why. Returns 0; 1 when `wanted` cannot be had, and `reason` says why not.
extern "C" __attribute__((visibility("default"))) int64_t
fused_rnn_cuda_plan(int64_t cell, int64_t dtype, int64_t backward, int64_t problems, int64_t batch, int64_t hidden,
                    int64_t has_projection, int64_t capability, int64_t multiprocessors, int64_t shared_bytes,
                    int64_t most_cluster_blocks, const char* wanted, int64_t* plan, char* reason, int64_t reason_size) {
  try {
    const Task task = {cell,
                       static_cast<Dtype>(dtype),
                       backward ? Direction::kBackward : Direction::kForward,
                       problems,
                       batch,
                       hidden,
                       has_projection ? kProjectionObstacle : nullptr};
    const Gpu gpu = {static_cast<int>(capability), static_cast<int>(multiprocessors), shared_bytes,
                     static_cast<int>(most_cluster_blocks)};
    const Plan found = select(task, gpu, wanted);
    const int64_t numbers[] = {found.shape ? static_cast<int64_t>(found.shape->blocks) : -1,
                               found.units,
                               found.blocks,
                               found.columns,
                               found.groups,
                               found.groups_at_once,
                               found.shape ? found.shape->number : -1};
    std::memcpy(plan, numbers, sizeof numbers);
    std::snprintf(reason, reason_size, "%s", found.why.c_str());
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(reason, reason_size, "%s", e.what());
    return 1;
  }
}
