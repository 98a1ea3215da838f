// The persistent kernel, as the time loops call it: a launch runs many steps.
#pragma once
#include "cuda/device/fill.h"
#include "cuda/host/loop.h"
#include "cuda/persistent/launch.h"

namespace fused_rnn::cuda {
namespace {

// Why the persistent kernel cannot run a layer; null if it can.
inline const char* obstacle(const Layer& layer) {
  if (const char* found =
          obstacle_of({projected(layer), layer.h_factor != nullptr, layer.zones_out, normalizes(layer)}))
    return found;
  if (layer.rows > INT32_MAX) return "the sequence has more than 2^31 rows";
  return nullptr;
}
inline const char* obstacle(const Backward& g) {
  if (g.grad_norms) return "norms of gradients are taken step by step";
  return obstacle(static_cast<const Layer&>(g));
}

// Second derivatives are always stepwise, whichever engine is set.
inline bool is_of_second_order(const Forward& f) { return f.primal; }
inline bool is_of_second_order(const Backward& g) { return g.trace_states || g.saved_tangent; }

template <class Args, class ArraysOfPass>
class PersistentRuns {
 public:
  PersistentRuns(const Args& args, Direction direction, const Machine& machine)
      : args_(args), machine_(machine), plan_(choose(args, direction)) {
    if (!plan_.shape) return;
    memory_ = {machine.scratch(ring_bytes(plan_, args.dtype, std::min(args.steps, most_steps()))),
               machine.scratch(weight_bytes(plan_, args)),
               {}};
    if (plan_.shape->blocks != Blocks::kOne) {  // which never waits
      memory_.watch = make_watch(args.device, machine.scratch(sizeof(uint32_t)));
      launch_fill(memory_.watch.abort_flag, 0, sizeof(uint32_t), machine.stream);
    }
    launch_pack_weights(plan_, args, memory_, machine.stream);
    if (!args.offsets) return;
    args_.offsets = on_gpu(args.offsets, args.steps);
    args_.lengths = on_gpu(args.lengths, args.batch);
    args_.lengths_member_stride = 0;
  }

  explicit operator bool() const { return plan_.shape.has_value(); }
  int64_t most_steps() const { return cuda::most_steps(plan_, args_.dtype); }
  void run(const ArraysOfPass& arrays, int64_t first, int64_t end) const {
    for (int64_t begin = first; begin < end; begin += most_steps())
      launch_persistent(plan_, args_, arrays, begin, std::min(end, begin + most_steps()), memory_, machine_.stream);
  }

 private:
  static Plan choose(const Args& args, Direction direction) {
    if (is_of_second_order(args)) return {};
    const bool tf32 = args.dtype == Dtype::kFloat && tf32_allowed();
    const Task task = {args.cell,  args.dtype,  direction, args.members * args.directions,
                       args.batch, args.hidden, tf32,      obstacle(args)};
    Plan plan = select(task, gpu_of(args.device), engine_wanted(), *measured_on(args.device));
    plan.scope = scope_wanted();
    return plan;
  }

  // By kernel parameters: a copy from pageable memory could synchronize, and a captured one would read freed memory.
  const int64_t* on_gpu(const int64_t* numbers, int64_t count) const {
    auto* const to = static_cast<int64_t*>(machine_.scratch(count * static_cast<int64_t>(sizeof(int64_t))));
    launch_store_numbers(to, numbers, count, machine_.stream);
    return to;
  }

  Args args_;
  const Machine& machine_;
  const Plan plan_;
  PersistentMemory memory_ = {};
};

}  // namespace
}  // namespace fused_rnn::cuda
