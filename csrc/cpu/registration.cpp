// The CPU engine: runs a pass's phases on torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../engine.h"
#include "../ops.h"
#include "select.h"

namespace fused_rnn {
namespace {

template <class Args>
void run(const Pass<Args>& pass, const Args& args, const Plan& plan, const Scratch& scratch) {
  void* workspace = scratch(pass.workspace_bytes(args, plan));
  for (const Phase<Args>& phase : pass.phases) {
    if (phase.run == nullptr) break;
    // Calls a pointer to the chosen instruction set's code: what stands here is compiled for the plain one.
    const auto run_tasks = [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) phase.run(args, plan, workspace, task);
    };
    const int64_t tasks = phase.count(args, plan);
    if (plan.threads == 1)
      run_tasks(0, tasks);
    else
      torch::stable::parallel_for(0, tasks, 1, run_tasks);
  }
}

Plan plan_for(const Layer& layer) { return select(best_isa(), load_of(layer), torch::stable::get_num_threads()); }

void forward(const Forward& args, const Scratch& scratch) {
  const Plan plan = plan_for(args);
  run(kernels_for(plan.isa).forward(args.cell, args.dtype), args, plan, scratch);
}

void backward(const Backward& args, const Scratch& scratch) {
  const Plan plan = plan_for(args);
  run(kernels_for(plan.isa).backward(args.cell, args.dtype), args, plan, scratch);
}

// Stubs: forward packs for itself on every call, and ignores what is packed.
int64_t packed_bytes(const Layer&) { return 64; }
void pack(const Layer&, void*) {}
int64_t packed_format() { return static_cast<int64_t>(best_isa()); }

const Engine kEngine = {&forward, &backward, &packed_bytes, &pack, &packed_format};
const bool kAdded = (add_engine(torch::headeronly::DeviceType::CPU, kEngine), true);

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&fused_rnn::layer_forward));
  m.impl("infer", TORCH_BOX(&fused_rnn::infer));
  m.impl("pack_weights", TORCH_BOX(&fused_rnn::pack_weights));
  m.impl("layer_backward", TORCH_BOX(&fused_rnn::layer_backward));
}
