// The forward pass. Its phases:
//
//   pack_weights   into panels, all gates of the same units side by side                       forward/panels.h, pack.h
//   prepare_run    initial state of a run whose units are shared by a team                     forward/state.h
//   loop           a run of batch rows, or some of its units, through all steps                forward/loop.h
//                    W_ih x for the next few steps                                             forward/ahead.h
//                    W_hh h for one step, the cell as the epilogue of each tile                forward/cell.h
//                    the projection of h, if any
//
// A tangent (core/problem.h) runs the same loop, but reads x from memory and calls Cell::tangent.
#pragma once
#include "cpu/passes/forward/loop.h"

namespace fused_rnn::cpu {
namespace {

// Its entries in the table of phases (schedule/kernels.h).
template <class Cell, class S>
struct ForwardPass {
  using Shape = ShapeOf<Cell>;
  using ThisRun = ForwardRun<Shape, S>;

  static int64_t packed_bytes(const Forward& f, const Plan& plan) { return size_of<PackedWeights<Shape, S>>(f, plan); }
  static int64_t bytes(const Forward& f, const Plan& plan) { return ThisRun::bytes(f, plan); }

  static int64_t count_packs(const Forward& f, const Plan& plan) { return f.packed ? 0 : problems(f) * plan.threads; }
  static void pack_weights(const Forward& f, const Plan& plan, void* buffer, int64_t, int64_t task) {
    WeightPacker<Shape, S>(f, plan, buffer, task).run();
  }

  // Without a team, the loop prepares its run itself.
  static int64_t count_runs_to_prepare(const Forward& f, const Plan& plan) {
    return plan.unit_chunks > 1 ? count_runs(f, plan) : 0;
  }
  static void prepare_run(const Forward& f, const Plan& plan, void* buffer, int64_t, int64_t number) {
    ThisRun(f, plan, buffer, number).prepare(buffer, number);
  }

  static int64_t count_loops(const Forward& f, const Plan& plan) { return cpu::count_loops(f, plan); }
  static void loop(const Forward& f, const Plan& plan, void* buffer, int64_t, int64_t task) {
    ForwardLoop<Shape, S>(f, plan, buffer, task, ForwardCells<Cell, S>::kEpilogues).run();
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
