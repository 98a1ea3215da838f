// The backward pass. Its phases, of which those indented run once for each round (backward/rounds.h):
//
//   prepare          packs the weights                                                         backward/pack.h
//     loop           some steps back through time: gradients of the gates and the initial      backward/loop.h, cell.h
//                    states, norms
//     input_grads    dL/dx of these steps                                                      input_grads.h
//     pack_operands  packs x and h of these steps                                              weight_grads.h
//     weight_grads   their contribution to dL/dW, parallel over gate rows                      weight_grads.h
//   finish           sums over the batch                                                       backward/finish.h
//   ...              stores results that were accumulated in the workspace                     weight_grads.h
//
// A step begins with dh = W_hh^T dgates of the previous step of the loop, with the cell as the epilogue of each tile,
// as in the forward pass. Each sum has a fixed order, whatever the number of threads.
#pragma once
#include "cpu/passes/backward/finish.h"
#include "cpu/passes/backward/loop.h"
#include "cpu/passes/backward/pack.h"

namespace fused_rnn::cpu {
namespace {

// Its entries in the table of phases (schedule/kernels.h): those that do not depend on the cell, and the loop.
template <class S>
struct BackwardFrame {
  static int64_t count_packs(const Backward& g, const Plan& plan) { return problems(g) * plan.threads; }
  static void prepare(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    BackwardPreparation<S>(g, plan, buffer, task).run();
  }

  static int64_t count_ends(const Backward& g, const Plan&) {
    return g.grad_norms || traits_of(g.cell).params > 0 || normalizes(g) ? problems(g) : 0;
  }
  static void finish(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t problem) {
    BackwardEnd<S>(g, plan, buffer, problem).run();
  }
};

template <class Cell, class S>
struct BackwardPass {
  static int64_t count_loops(const Backward& g, const Plan& plan) { return cpu::count_loops(g, plan); }
  static void loop(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    BackwardLoop<S>(g, plan, buffer, task, BackwardCells<Cell, S>::kEpilogues).run(round);
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
