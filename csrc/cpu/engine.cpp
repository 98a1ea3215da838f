// The CPU engine: runs a pass's phases on torch's threads.
#include <torch/csrc/stable/ops.h>

#include "core/engine.h"
#include "core/registry.h"
#include "cpu/schedule/own_cells.h"
#include "cpu/schedule/select.h"
#include "cpu/schedule/team.h"

namespace fused_rnn::cpu {
namespace {

// f(phase, round) for all phases of a pass, in order.
template <class Args, class F>
void for_phases(const Pass<Args>& pass, const Args& args, F f) {
  const auto run_all = [&](const Phase<Args>(&phases)[kMostPhases], int64_t round) {
    for (const Phase<Args>& phase : phases)
      if (phase.run != nullptr) f(phase, round);
  };
  const int64_t rounds = pass.rounds(args);
  run_all(pass.first, 0);
  for (int64_t round = 0; round < rounds; ++round) run_all(pass.each, round);
  run_all(pass.last, rounds);
}

// One parallel region for all phases, with a barrier between phases: starting threads costs more than a phase of a
// small layer. Threads that do not show up are not waited for (team.h).
template <class Args>
void run(const Pass<Args>& pass, const Args& args, const Plan& plan, const Scratch& scratch) {
  void* workspace = scratch(pass.workspace_bytes(args, plan));
  const int64_t size = plan.threads;
  const Team team(size > 1 ? static_cast<Team::Member*>(scratch(size * sizeof(Team::Member))) : nullptr, size);
  const auto take_part = [&](int64_t member) {
    int64_t stretch = 0;
    team.join(member);
    for_phases(pass, args, [&](const Phase<Args>& phase, int64_t round) {
      // These point to code for the chosen instruction set; this file is compiled for the baseline.
      const int64_t tasks = phase.count(args, plan);
      if (tasks == 0) return;
      team.together(member, stretch++, [&](int64_t share) {
        for (int64_t task = tasks * share / size; task < tasks * (share + 1) / size; ++task)
          phase.run(args, plan, workspace, round, task);
      });
    });
    team.leave(member);
  };
  if (size == 1) return take_part(0);
  team.clear();
  torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t member = begin; member < end; ++member) take_part(member);
  });
}

std::span<const Isa> isas_of(const Layer& layer) {
  return isas_for(layer.dtype, layer.format, traits_of_any(layer.cell).gates);
}

const Kernels& kernels_of(Isa isa, const Layer& layer) {
  return is_own(layer.cell) ? kernels_of_own(layer.cell, isa, layer.dtype) : kernels_for(isa, layer.dtype);
}

const Pass<Forward>& forward_pass(Isa isa, const Layer& layer) {
  if (layer.format != WeightFormat::kOwn) return int8_kernels_for(isa).forward(layer.cell, layer.format);
  return kernels_of(isa, layer).forward(layer.cell, layer.dtype);
}
const Packing& packing_of(Isa isa, const Layer& layer) {
  if (layer.format != WeightFormat::kOwn) return int8_kernels_for(isa).packing(layer.cell, layer.format);
  return kernels_of(isa, layer).packing(layer.cell, layer.dtype);
}

// A call's plan, owning the order of its rows.
struct CallPlan : Plan {
  std::vector<int64_t> rows;

  explicit CallPlan(const Layer& layer)
      : Plan(select(isas_of(layer), load_of(layer), torch::stable::get_num_threads(), current_thresholds())),
        rows(order_rows(layer, *this)) {
    order = rows.empty() ? nullptr : rows.data();
  }
  CallPlan(const CallPlan&) = delete;
};

// Packs ahead of time (Layer::packed), on one thread.
struct PackingCall {
  Forward forward = {};
  Plan plan;
  const Packing& packing;

  PackingCall(const Layer& layer, Isa isa)
      : plan{isa, 1, 1, 1, nullptr, Reading::kPacked}, packing(packing_of(isa, layer)) {
    static_cast<Layer&>(forward) = layer;
    forward.packed = nullptr;
    forward.tokens = nullptr;  // packed weights serve any input
  }

  int64_t bytes() const { return packing.bytes(forward, plan); }
  void pack(char* to) const {
    for (int64_t task = 0; task < packing.phase.count(forward, plan); ++task)
      packing.phase.run(forward, plan, to, 0, task);
  }
};

// The instruction set may differ from call to call: the weights are packed for each of them, one after the other.
int64_t packed_bytes(const Layer& layer) {
  int64_t bytes = 0;
  for (const Isa isa : isas_of(layer)) bytes += PackingCall(layer, isa).bytes();
  return bytes;
}
void pack(const Layer& layer, void* packed) {
  char* to = static_cast<char*>(packed);
  for (const Isa isa : isas_of(layer)) {
    const PackingCall call(layer, isa);
    call.pack(to);
    to += call.bytes();
  }
}
const void* packed_for(Isa wanted, const Layer& layer) {
  const char* packed = static_cast<const char*>(layer.packed);
  for (const Isa isa : isas_of(layer)) {
    if (isa == wanted) break;
    packed += PackingCall(layer, isa).bytes();
  }
  return packed;
}

void forward(const Forward& given, const Scratch& scratch) {
  const CallPlan plan(given);
  Forward args = given;
  if (args.packed) args.packed = packed_for(plan.isa, args);
  run(forward_pass(plan.isa, args), args, plan, scratch);
}

void backward(const Backward& args, const Scratch& scratch) {
  const CallPlan plan(args);
  run(kernels_of(plan.isa, args).backward(args.cell, args.dtype), args, plan, scratch);
}
int64_t packed_format() { return static_cast<int64_t>(best_isa()); }

const Engine kEngine = {&forward, &backward, &packed_bytes, &pack, &packed_format, true};
const bool kAdded = (add_engine(torch::headeronly::DeviceType::CPU, kEngine), true);

}  // namespace
}  // namespace fused_rnn::cpu
