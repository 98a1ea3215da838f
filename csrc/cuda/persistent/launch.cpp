#include "cuda/persistent/launch.h"

#include <algorithm>

#include "cuda/device/fill.h"

namespace fused_rnn::cuda {
namespace {

constexpr int64_t kMostRingBytes = int64_t{64} << 20;

int64_t slot_bytes(const Plan& plan, Dtype dtype) {
  return int64_t{plan.depth} * plan.shape->tiles.columns() * number_bytes(dtype);
}

bool has_slot_per_step(const Plan& plan) { return plan.shape->blocks == Blocks::kPolling; }
bool has_flags(const Plan& plan) { return plan.shape->blocks == Blocks::kFlags; }

int64_t all_slot_bytes(const Plan& plan, Dtype dtype, int64_t steps) {
  if (!has_slot_per_step(plan) && !has_flags(plan)) return 0;
  const int64_t slots = has_slot_per_step(plan) ? steps + 1 : 2;
  return plan.groups_at_once * slots * slot_bytes(plan, dtype);
}

template <class Args, class Arrays>
void run(const Plan& plan, const Args& args, const Arrays& arrays, int64_t first, int64_t end,
         const PersistentMemory& memory, void* stream) {
  const int64_t groups = args.members * args.directions * plan.groups;
  const int64_t bytes = ring_bytes(plan, args.dtype, end - first),
                slots = all_slot_bytes(plan, args.dtype, end - first);
  for (int64_t g = 0; g < groups; g += plan.groups_at_once) {
    launch_fill(memory.ring, has_slot_per_step(plan) ? 0xff : 0, bytes, stream);  // all ones: not yet written
    const Partition partition = {plan.units,
                                 plan.blocks,
                                 plan.depth,
                                 plan.columns,
                                 plan.groups,
                                 static_cast<int>(g),
                                 static_cast<int>(first),
                                 static_cast<int>(end),
                                 plan.scope,
                                 memory.weights,
                                 static_cast<unsigned char*>(memory.ring),
                                 reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(memory.ring) + slots),
                                 memory.watch};
    const int64_t now = std::min<int64_t>(plan.groups_at_once, groups - g);
    switch (args.dtype) {
      case Dtype::kFloat:
        launch_float(plan, args, arrays, partition, now, stream);
        break;
      case Dtype::kDouble:
        launch_double(plan, args, arrays, partition, now, stream);
        break;
      case Dtype::kBFloat16:
        launch_bfloat16(plan, args, arrays, partition, now, stream);
        break;
      case Dtype::kHalf:
        launch_half(plan, args, arrays, partition, now, stream);
        break;
    }
  }
}

template <class Args>
void pack(const Plan& plan, const Args& args, void* to, void* stream) {
  switch (args.dtype) {
    case Dtype::kFloat:
      return pack_float(plan, args, to, stream);
    case Dtype::kDouble:
      return pack_double(plan, args, to, stream);
    case Dtype::kBFloat16:
      return pack_bfloat16(plan, args, to, stream);
    case Dtype::kHalf:
      return pack_half(plan, args, to, stream);
  }
}

}  // namespace

void launch_pack_weights(const Plan& plan, const Forward& f, const PersistentMemory& memory, void* stream) {
  pack(plan, f, memory.weights, stream);
}
void launch_pack_weights(const Plan& plan, const Backward& g, const PersistentMemory& memory, void* stream) {
  pack(plan, g, memory.weights, stream);
}

void launch_persistent(const Plan& plan, const Forward& f, const ForwardArrays& a, int64_t first, int64_t end,
                       const PersistentMemory& memory, void* stream) {
  run(plan, f, a, first, end, memory, stream);
}
void launch_persistent(const Plan& plan, const Backward& g, const BackwardArrays& a, int64_t first, int64_t end,
                       const PersistentMemory& memory, void* stream) {
  run(plan, g, a, first, end, memory, stream);
}

int64_t weight_bytes(const Plan& plan, const Layer& layer) {
  const Tiles& tiles = plan.shape->tiles;
  return layer.members * layer.directions * plan.blocks * tiles.rows() * tiles.depth() * number_bytes(layer.dtype);
}

int64_t ring_bytes(const Plan& plan, Dtype dtype, int64_t steps) {
  const int64_t flags = has_flags(plan) ? int64_t{4} * plan.groups_at_once * plan.blocks : 0;
  return all_slot_bytes(plan, dtype, steps) + flags;
}
int64_t most_steps(const Plan& plan, Dtype dtype) {
  if (!has_slot_per_step(plan)) return INT32_MAX;
  return std::max<int64_t>(1, kMostRingBytes / (plan.groups_at_once * slot_bytes(plan, dtype)) - 1);
}

}  // namespace fused_rnn::cuda
