// A call of a backward operator.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <span>
#include <vector>

#include "core/engine.h"
#include "ops/arguments.h"
#include "ops/memory.h"

namespace fused_rnn {

using Gradient = std::optional<Tensor>;

// The bits of `wanted`, as in fused_rnn/ops/layer.py (tests/ops/test_dispatch.py compares them, bit by bit). Gradients of
// the states cost nothing and are always computed.
enum Wanted : int64_t {
  kInput = 1,
  kWeightIh = 2,
  kWeightHh = 4,
  kBiasIh = 8,
  kBiasHh = 16,
  kWeightHr = 32,
  kParameters = 64,
};

// One call: its arguments and its results.
struct BackwardCall {
  Backward g = {};
  const Tensor& like;
  std::span<const Tensor> weights;
  Arguments args;
  bool has_placeholders = true;  // empty tensors for gradients that were not requested; else undefined ones
  Tensor grad_input, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;

  BackwardCall(int64_t cell, bool bias, bool bidirectional, const Tensor& input, std::span<const Tensor> weights)
      : like(like_of(input, weights)), weights(weights), args(g, cell, bias, bidirectional, input, weights) {}

  Tensor allocate(bool asked, const Shape& shape) const {
    if (!asked && !has_placeholders) return Tensor();
    return new_tensor(like, asked ? shape : Shape{0});
  }

  void read(const Gradient& output, const Gradient& h_n, const Gradient& c_n, const Gradient& cells,
            const Tensor& saved) {
    FUSED_RNN_CHECK(saved.dim() > 1,
                    "fused_rnn: nothing was saved for this gradient; run layer_forward with save=True");
    if (g.segment > 0)
      g.kept = args.hold(args.checked.as(saved, "saved", args.kept_shape(), args.arithmetic()));
    else
      g.saved = args.hold(args.checked(saved, "saved", args.saved_shape()));
    g.grad_output = args.optional_data(output, "grad_output", args.rows(g.directions * g.output_size));
    g.grad_h_n = args.optional_data(h_n, "grad_h_n", args.states(g.output_size));
    FUSED_RNN_CHECK(args.cell.states > 1 || !(c_n || cells),
                    "fused_rnn: this cell has no second state, but grad_c_n or grad_cells was given");
    g.grad_c_n = args.optional_data(c_n, "grad_c_n", args.states(args.further_width()));
    g.grad_cells = args.optional_data(cells, "grad_cells", args.rows(g.directions * args.further_width()));
    g.weight_groups = 1;
  }

  // `initial`: whether the gradients of h0 and c0 are wanted, too.
  void write(int64_t wanted, bool initial = true) {
    const int64_t K = g.weight_groups;
    const bool to_input = wanted & kInput, two_states = args.cell.states > 1;
    FUSED_RNN_CHECK(!to_input || !g.tokens, "fused_rnn: ids have no gradient");
    grad_input = allocate(to_input, args.rows(g.input_size));
    grad_h0 = allocate(initial, args.states(g.output_size));
    grad_c0 = allocate(initial && two_states, args.states(args.further_width()));
    g.grad_input = to_input ? grad_input.data_ptr() : nullptr;
    g.grad_h0 = initial ? grad_h0.data_ptr() : nullptr;
    g.grad_c0 = initial && two_states ? grad_c0.data_ptr() : nullptr;
    for (int64_t d = 0; d < g.directions; ++d) {
      const auto take = [&](bool exists, Wanted kind) -> void* {
        if (!exists) return nullptr;
        Shape shape = shape_of(weights[grad_weights.size()]);
        if (K > 1) shape.insert(args.members.size(), K);
        grad_weights.push_back(wanted & kind ? recycled_tensor(like, shape) : allocate(false, shape));
        return wanted & kind ? grad_weights.back().data_ptr() : nullptr;
      };
      WeightGradients& w = g.grads[d];
      w.ih = take(true, kWeightIh);
      w.hh = take(args.cell.recurrent, kWeightHh);
      w.bias_ih = take(args.has_bias, kBiasIh);
      w.bias_hh = take(args.has_bias && args.cell.recurrent, kBiasHh);
      w.params = take(args.cell.params > 0, kParameters);
      w.hr = take(args.has_projection, kWeightHr);
    }
  }

  // An array for intermediate gradients, [rows, D*width]; engines do not write padding.
  Tensor trace(bool asked, int64_t width) const {
    Tensor traced = allocate(asked, args.rows(g.directions * width));
    if (asked && g.lengths && !g.offsets) torch::stable::zero_(traced);
    return traced;
  }

  void run() {
    if (!g.grad_norms) skip_steps_without_rows(g);  // those have a number for every step
    CallScratch scratch(like);
    engine_for(like.device().type()).backward(g, [&](int64_t bytes) { return scratch.take(bytes); });
  }
};

}  // namespace fused_rnn
