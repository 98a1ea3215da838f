// Plans for Python, through ctypes; also for GPUs that this machine does not have.
#include <cstring>

#include "core/export.h"
#include "cuda/plan/plan.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;

// Fills `gpu` with the fields of Gpu: capability, multiprocessors, shared_bytes, most_cluster_blocks.
FUSED_RNN_EXPORT int64_t fused_rnn_gpu(int64_t device, int64_t* gpu, char* reason, int64_t reason_size) {
  return !succeeds(reason, reason_size, [&] {
    const Gpu found = gpu_of(static_cast<int32_t>(device));
    const int64_t numbers[] = {found.capability, found.multiprocessors, found.shared_bytes, found.most_cluster_blocks};
    std::memcpy(gpu, numbers, sizeof numbers);
  });
}

// Fills `plan` with: the kind of groups as an index in kEngines (-1: stepwise), units, blocks, columns, groups,
// groups_at_once, the shape's number, whether it rounds to TF32, threads, registers for weights, bytes of shared
// memory. `reason`: why this plan, or why `wanted` is not possible. `wanted` null: the current engine. `device`: whose
// measurements count.
FUSED_RNN_EXPORT int64_t fused_rnn_cuda_plan(int64_t cell, int64_t dtype, int64_t backward, int64_t problems,
                                             int64_t batch, int64_t hidden, int64_t tf32, int64_t projection,
                                             int64_t recurrent_dropout, int64_t zoneout, int64_t layer_norm,
                                             int64_t capability, int64_t multiprocessors, int64_t shared_bytes,
                                             int64_t most_cluster_blocks, const char* wanted, int64_t device,
                                             int64_t* plan, char* reason, int64_t reason_size) {
  return !succeeds(reason, reason_size, [&] {
    const Task task = {cell,
                       static_cast<Dtype>(dtype),
                       backward ? Direction::kBackward : Direction::kForward,
                       problems,
                       batch,
                       hidden,
                       tf32 != 0,
                       obstacle_of({projection != 0, recurrent_dropout != 0, zoneout != 0, layer_norm != 0})};
    const Gpu gpu = {static_cast<int>(capability), static_cast<int>(multiprocessors), shared_bytes,
                     static_cast<int>(most_cluster_blocks)};
    const Plan found = select(task, gpu, wanted ? wanted : engine_wanted(), *measured_on(static_cast<int32_t>(device)));
    const int64_t numbers[] = {found.shape ? kFirstOfBlocks + static_cast<int64_t>(found.shape->blocks) : -1,
                               found.units,
                               found.blocks,
                               found.columns,
                               found.groups,
                               found.groups_at_once,
                               found.shape ? static_cast<int64_t>(found.number) : -1,
                               found.shape && found.shape->tf32,
                               found.shape ? found.shape->tiles.threads() : 0,
                               found.shape ? found.shape->weight_registers() : 0,
                               found.shape ? found.shape->shared_bytes() : 0};
    std::memcpy(plan, numbers, sizeof numbers);
    std::snprintf(reason, reason_size, "%s", found.why.c_str());
  });
}

// Sets the engine of later calls, as an index in kEngines; -1: from the environment. Returns the previous value.
FUSED_RNN_EXPORT int64_t fused_rnn_set_engine(int64_t number) { return set_engine_wanted(static_cast<int>(number)); }
