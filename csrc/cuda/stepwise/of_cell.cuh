// The launches of one cell's kernels for one dtype; of the library's cells and of a plug-in's.
#pragma once
#include "cuda/stepwise/backward.cuh"
#include "cuda/stepwise/forward.cuh"
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {
namespace {

template <class Cell, class S>
void launch_restart(const Forward& f, const Step& step, const ForwardArrays& a, void* stream) {
  launch(one_thread_each(f.output_size, step.rows, problems(f), stream), restart<Cell, S>, f, step, a);
}

template <class Cell, class S>
void launch_forward_step(const Forward& f, const Step& step, const ForwardArrays& a, void* stream) {
  launch(one_thread_each(f.hidden, step.rows, problems(f), stream),
         f.primal ? tangent_step<Cell, S> : forward_step<Cell, S>, f, step, a);
}

template <class Cell, class S>
void launch_backward_step(const Backward& g, const Step& step, const BackwardArrays& a, void* stream) {
  launch(one_thread_each(g.hidden, step.rows, problems(g), stream),
         g.saved_tangent ? backward_step<Cell, S, true> : backward_step<Cell, S, false>, g, step, a);
}

template <class Cell, class S>
constexpr CellLaunches kLaunches = [] {
  CellLaunches made = {{}, nullptr, &launch_forward_step<Cell, S>, &launch_backward_step<Cell, S>, -1};
  if constexpr (requires { Cell::kOutputGate; }) made.output_gate = Cell::kOutputGate;
  if constexpr (Cell::kInitial[0] != 0) made.restart = &launch_restart<Cell, S>;
  for (int s = 0; s < Cell::kStates; ++s) made.initial[s] = Cell::kInitial[s];
  return made;
}();

}  // namespace
}  // namespace fused_rnn::cuda
