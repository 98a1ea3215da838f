// The backward pass. Its phases, of which those indented run once for each round (backward/rounds.h):
//
//   prepare          the weights into panels                                                   backward/pack.h
//     loop           some steps back through time: gradients of the gates, the initial         backward/loop.h, cell.h
//                    states, the norms
//     input_grads    dL/dx of these steps                                                      input_grads.h
//     pack_operands  x and h of these steps, in panels                                         weight_grads.h
//     weight_grads   their share of dL/dW, any gate rows side by side                          weight_grads.h
//   finish           sums over the batch                                                       backward/finish.h
//   ...              results that were accumulated elsewhere                                   weight_grads.h
//
// A step begins with dh = W_hh^T dgates of the step before it in the loop, with the cell as the epilogue of each tile, as
// in the forward pass. Each sum has one fixed order, whatever the number of threads.
#pragma once
#include "cpu/passes/backward/finish.h"
#include "cpu/passes/backward/loop.h"
#include "cpu/passes/backward/pack.h"

namespace fused_rnn::cpu {
namespace {

// Its entries in the table of phases (schedule/kernels.h): those that are the same for every cell, and the loop.
template <class S>
struct BackwardFrame {
  static int64_t count_packs(const Backward& g, const Plan& plan) { return problems(g) * plan.threads; }
  static void prepare(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    BackwardPreparation<S>(g, plan, buffer, task).run();
  }

  static int64_t count_ends(const Backward& g, const Plan&) {
    return g.grad_norms || traits_of(g.cell).params > 0 ? problems(g) : 0;
  }
  static void finish(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t problem) {
    BackwardEnd<S>(g, plan, buffer, problem).run();
  }
};

template <class Cell, class S>
struct BackwardPass {
  static int64_t count_loops(const Backward& g, const Plan& plan) { return cpu::count_loops(g, plan); }
  static void loop(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    BackwardLoop<Cell, S>(g, plan, buffer, task).run(round);
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
