// The CPU engine: runs a pass's phases on torch's threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "core/engine.h"
#include "core/fail.h"
#include "core/registry.h"
#include "cpu/schedule/own_cells.h"
#include "cpu/schedule/select.h"
#include "cpu/schedule/team.h"

namespace fused_rnn::cpu {
namespace {

// A pass on its way. One parallel region for all phases, with a barrier between phases: starting threads costs more than
// a phase of a small layer. Threads that do not show up are not waited for (team.h).
template <class Args>
class RunningPass {
 public:
  RunningPass(const Pass<Args>& pass, const Args& args, const Plan& plan, const Scratch& scratch)
      : pass_(pass), args_(args), plan_(plan), workspace_(scratch(pass.workspace_bytes(args, plan))) {
    if (plan.threads > 1) members_ = static_cast<Team::Member*>(scratch(plan.threads * sizeof(Team::Member)));
  }

  int64_t rounds() const {
    if (pass_.steps_of_round == nullptr) return 1;
    const int64_t steps = pass_.steps_of_round(args_);
    return (args_.steps + steps - 1) / steps;
  }

  void all() const { some(0, rounds()); }

  // Rounds from..to-1, with what comes before the first round of all and after the last one.
  void some(int64_t from, int64_t to) const {
    const int64_t size = plan_.threads;
    const Team team(members_, size);
    const auto take_part = [&](int64_t member) {
      int64_t stretch = 0;
      team.join(member);
      for_phases(from, to, [&](const Phase<Args>& phase, int64_t round) {
        // These point to code for the chosen instruction set; this file is compiled for the baseline.
        const int64_t tasks = phase.count(args_, plan_);
        if (tasks == 0) return;
        team.together(member, stretch++, [&](int64_t share) {
          for (int64_t task = tasks * share / size; task < tasks * (share + 1) / size; ++task)
            phase.run(args_, plan_, workspace_, round, task);
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

 private:
  // f(phase, round) for all phases of these rounds, in order.
  template <class F>
  void for_phases(int64_t from, int64_t to, F f) const {
    const auto run_all = [&](const Phase<Args>(&phases)[kMostPhases], int64_t round) {
      for (const Phase<Args>& phase : phases)
        if (phase.run != nullptr) f(phase, round);
    };
    if (from == 0) run_all(pass_.first, 0);
    for (int64_t round = from; round < to; ++round) run_all(pass_.each, round);
    if (to == rounds()) run_all(pass_.last, to);
  }

  const Pass<Args>& pass_;
  const Args& args_;
  const Plan& plan_;
  void* const workspace_;
  Team::Member* members_ = nullptr;
};

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
  args.last_step = args.steps;
  if (args.packed) args.packed = packed_for(plan.isa, args);
  RunningPass(forward_pass(plan.isa, args), args, plan, scratch).all();
}

const Pass<Backward>& backward_pass(Isa isa, const Layer& layer) {
  return kernels_of(isa, layer).backward(layer.cell, layer.dtype);
}

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2; }

int64_t steps_of_round(const CallPlan& plan, const Layer& layer) {
  Backward g = {};
  static_cast<Layer&>(g) = layer;
  g.weight_groups = 1;
  return backward_pass(plan.isa, layer).steps_of_round(g);
}

// Whole rounds of the backward pass, so that its sums are those of a pass without segments.
int64_t segment_for(const Layer& layer, int64_t steps) {
  const int64_t round = steps_of_round(CallPlan(layer), layer);
  const int64_t segment = steps > layer.steps - round ? layer.steps : (steps + round - 1) / round * round;
  return segment < layer.steps ? segment : 0;
}

// Before the rounds of a segment, the forward pass runs through it again.
void backward_in_segments(Backward args, const CallPlan& plan, const Scratch& scratch) {
  const int64_t round = steps_of_round(plan, args), rows = args.members * args.directions * args.batch;
  if (args.segment % round != 0)
    fail("fused_rnn: the number of threads changed between a layer with checkpoints and its backward pass");
  Forward again = {};
  static_cast<Layer&>(again) = args;
  again.kept = const_cast<void*>(args.kept);
  again.saved = scratch(rows * args.segment * args.saved_width * bytes_of(args.dtype));
  again.output = scratch(rows * args.output_size * bytes_of(args.dtype));
  again.runs_again = true;
  args.saved = again.saved;
  again.last_step = args.steps;
  const RunningPass forward(forward_pass(plan.isa, again), again, plan, scratch);
  const RunningPass backward(backward_pass(plan.isa, args), args, plan, scratch);
  const int64_t per_segment = args.segment / round;
  for (int64_t done = 0; done < backward.rounds(); done += per_segment) {
    again.first_step = std::max<int64_t>(0, again.last_step - args.segment);
    forward.all();
    backward.some(done, std::min(backward.rounds(), done + per_segment));
    again.last_step = again.first_step;
  }
}

void backward(const Backward& args, const Scratch& scratch) {
  const CallPlan plan(args);
  if (args.segment > 0) return backward_in_segments(args, plan, scratch);
  RunningPass(backward_pass(plan.isa, args), args, plan, scratch).all();
}
int64_t packed_format() { return static_cast<int64_t>(best_isa()); }

const Engine kEngine = {&forward, &backward, &packed_bytes, &pack, &packed_format, true, &segment_for};
const bool kAdded = (add_engine(torch::headeronly::DeviceType::CPU, kEngine), true);

}  // namespace
}  // namespace fused_rnn::cpu
