// A call of a forward operator.
#pragma once
#include <tuple>

#include "core/engine.h"
#include "ops/arguments.h"
#include "ops/memory.h"

namespace fused_rnn {

// A forward pass or its tangent; `f` has its arguments, but no results yet.
inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run_forward(Forward& f, const Arguments& args,
                                                                      const Tensor& like, bool save, bool cells) {
  FUSED_RNN_CHECK(!cells || args.cell.states > 1, "fused_rnn: this cell has no second state to return at every step");
  const auto allocate = [&](bool asked, Shape shape) {
    return new_tensor(like, asked ? concat({args.members, shape}) : Shape{0});
  };
  const int64_t D = f.directions, B = f.batch, P = f.output_size, W = args.further_width();
  const bool two_states = args.cell.states > 1;
  Tensor output = allocate(true, concat({args.row_shape, {D * P}}));
  Tensor h_n = allocate(true, {D, B, P});
  Tensor c_n = allocate(two_states, {D, B, W});
  Tensor all_cells = allocate(cells, concat({args.row_shape, {D * W}}));
  const bool keeps = save && f.segment > 0;
  Tensor saved = keeps  ? new_tensor(like, args.kept_shape(), args.arithmetic())
                 : save ? recycled_tensor(like, args.saved_shape())
                        : new_tensor(like, {0});
  f.output = output.data_ptr();
  f.h_n = h_n.data_ptr();
  f.c_n = two_states ? c_n.data_ptr() : nullptr;
  f.cells = cells ? all_cells.data_ptr() : nullptr;
  (keeps ? f.kept : f.saved) = save ? saved.data_ptr() : nullptr;

  skip_steps_without_rows(f);
  CallScratch scratch(like);
  engine_for(like.device().type()).forward(f, [&](int64_t bytes) { return scratch.take(bytes); });
  return {output, h_n, c_n, all_cells, saved};
}

}  // namespace fused_rnn
