// The workspace of the backward pass: its state, then accumulators of weight and input gradients, then each task's
// scratch.
#pragma once
#include "cpu/passes/backward/rows.h"
#include "cpu/passes/weight_grads/state.h"

namespace fused_rnn::cpu {
namespace {

// dL/dx in the arithmetic type: [M, N, I] when it is stored in 16 bits and two directions add to it.
template <class S>
struct InputGradSums {
  using T = Arithmetic<S>;
  T* sums;

  static bool are_needed(const Backward& g) { return sizeof(S) != sizeof(T) && g.directions > 1 && g.grad_input; }

  InputGradSums(const Backward& g, const Plan&, Carver& carve)
      : sums(carve.take<T>(are_needed(g) ? g.members * g.rows * g.input_size : 0)) {}
};

// Scratch of one task.
template <class S>
struct TaskScratch {
  static constexpr int64_t kPanel = kMostVectors * Vec<Arithmetic<S>>::kLanes;

  RoundRows rows;
  Strip<S> strip;
  S* masked_h;  // [rows of a block, columns of a panel]: with recurrent dropout, h times its factor

  TaskScratch(const Backward& g, const Plan&, Carver& carve)
      : rows(g, carve), strip(carve), masked_h(carve.take<S>(g.h_factor ? kRowsOfRound * kPanel : 0)) {}
};

template <class S>
struct BackwardWorkspace {
  using State = BackwardState<S>;
  using WeightState = WeightGradState<S>;

  const Backward& g;
  const Plan& plan;
  void* buffer;

  static int64_t bytes(const Backward& g, const Plan& plan) {
    return BackwardWorkspace{g, plan, nullptr}.offset_of_task(problems(g) * plan.threads);
  }

  State state() const { return part_at<State>(buffer, 0, g, plan); }
  WeightState weight_grads() const { return part_at<WeightState>(buffer, size_of<State>(g, plan), g, plan); }
  InputGradSums<S> input_grads() const {
    return part_at<InputGradSums<S>>(buffer, size_of<State>(g, plan) + size_of<WeightState>(g, plan), g, plan);
  }
  TaskScratch<S> scratch(int64_t task) const { return part_at<TaskScratch<S>>(buffer, offset_of_task(task), g, plan); }

 private:
  int64_t offset_of_task(int64_t task) const {
    const int64_t shared = size_of<State>(g, plan) + size_of<WeightState>(g, plan) + size_of<InputGradSums<S>>(g, plan);
    return shared + task * size_of<TaskScratch<S>>(g, plan);
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
