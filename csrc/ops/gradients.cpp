// The backward operators: layer_backward, and those for second derivatives.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "core/engine.h"
#include "ops/arguments.h"
#include "ops/memory.h"
#include "ops/ops.h"

namespace fused_rnn {
namespace {

using torch::headeronly::ScalarType;
using Gradient = std::optional<Tensor>;

// The bits of `wanted`, as in fused_rnn/ops/layer.py (tests/test_dispatch.py compares them, bit by bit). Gradients of
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
  Tensor grad_input, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;

  BackwardCall(int64_t cell, bool bias, bool bidirectional, const Tensor& input, std::span<const Tensor> weights)
      : like(like_of(input, weights)), weights(weights), args(g, cell, bias, bidirectional, input, weights) {}

  Tensor allocate(bool asked, const Shape& shape) const { return new_tensor(like, asked ? shape : Shape{0}); }

  void read(const Gradient& output, const Gradient& h_n, const Gradient& c_n, const Gradient& cells,
            const Tensor& saved) {
    FUSED_RNN_CHECK(saved.dim() > 1,
                    "fused_rnn: nothing was saved for this gradient; run layer_forward with save=True");
    g.saved = args.hold(args.checked(saved, "saved", args.saved_shape()));
    g.grad_output = args.optional_data(output, "grad_output", args.rows(g.directions * g.output_size));
    g.grad_h_n = args.optional_data(h_n, "grad_h_n", args.states(g.output_size));
    FUSED_RNN_CHECK(args.cell.states > 1 || !(c_n || cells),
                    "fused_rnn: this cell has no second state, but grad_c_n or grad_cells was given");
    g.grad_c_n = args.optional_data(c_n, "grad_c_n", args.states(g.hidden));
    g.grad_cells = args.optional_data(cells, "grad_cells", args.rows(g.directions * g.hidden));
    g.weight_groups = 1;
  }

  void write(int64_t wanted) {
    const int64_t K = g.weight_groups;
    const bool to_input = wanted & kInput, two_states = args.cell.states > 1;
    FUSED_RNN_CHECK(!to_input || !g.tokens, "fused_rnn: ids have no gradient");
    grad_input = allocate(to_input, args.rows(g.input_size));
    grad_h0 = allocate(true, args.states(g.output_size));
    grad_c0 = allocate(two_states, args.states(g.hidden));
    g.grad_input = to_input ? grad_input.data_ptr() : nullptr;
    g.grad_h0 = grad_h0.data_ptr();
    g.grad_c0 = two_states ? grad_c0.data_ptr() : nullptr;
    for (int64_t d = 0; d < g.directions; ++d) {
      const auto take = [&](bool exists, Wanted kind) -> void* {
        if (!exists) return nullptr;
        Shape shape = shape_of(weights[grad_weights.size()]);
        if (K > 1) shape.insert(args.members.size(), K);
        grad_weights.push_back(allocate(wanted & kind, shape));
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

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    int64_t cell, bool bias, bool bidirectional, Gradient grad_output, Gradient grad_h_n, Gradient grad_c_n,
    Gradient grad_cells, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0, std::vector<Tensor> weights,
    std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved,
    int64_t wanted, int64_t weight_groups, bool norms, std::optional<double> grad_clip) {
  BackwardCall call(cell, bias, bidirectional, input, weights);
  Backward& g = call.g;
  call.args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  FUSED_RNN_CHECK(weight_groups >= 1 && g.batch % weight_groups == 0 && (weight_groups == 1 || !batch_sizes),
                  "fused_rnn: weight_groups must divide a padded batch, got ", weight_groups, " groups for ", g.batch,
                  " rows");
  call.read(grad_output, grad_h_n, grad_c_n, grad_cells, saved);
  g.weight_groups = weight_groups;
  g.grad_clip = clip_of(grad_clip);
  call.write(wanted);
  const ScalarType arithmetic = g.dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
  const Shape norm_shape = concat({call.args.members, {g.directions, call.args.cell.states, g.steps}});
  Tensor grad_norms = new_tensor(call.like, norms ? norm_shape : Shape{0}, arithmetic);
  g.grad_norms = norms ? grad_norms.data_ptr() : nullptr;
  call.run();
  return {call.grad_input, call.grad_h0, call.grad_c0, grad_norms, call.grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_trace(
    int64_t cell, bool bias, bool bidirectional, Gradient grad_output, Gradient grad_h_n, Gradient grad_c_n,
    Gradient grad_cells, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0, std::vector<Tensor> weights,
    std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved) {
  BackwardCall call(cell, bias, bidirectional, input, weights);
  Backward& g = call.g;
  call.args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  call.args.refuse_tokens();
  call.read(grad_output, grad_h_n, grad_c_n, grad_cells, saved);
  call.write(0);
  const CellTraits& traits = call.args.cell;
  Tensor x = call.trace(true, traits.gates * g.hidden),
         r = call.trace(!traits.one_gate_gradient, traits.gates * g.hidden);
  Tensor states = call.trace(true, traits.states * g.hidden),
         output = call.trace(call.args.has_projection, g.output_size);
  Tensor wide = call.trace(call.args.has_projection, g.hidden);
  g.trace_x = x.data_ptr();
  g.trace_r = traits.one_gate_gradient ? nullptr : r.data_ptr();
  g.trace_states = states.data_ptr();
  g.trace_output = call.args.has_projection ? output.data_ptr() : nullptr;
  g.trace_wide = call.args.has_projection ? wide.data_ptr() : nullptr;
  call.run();
  return {x, r, states, output, wide};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward_tangent(
    int64_t cell, bool bias, bool bidirectional, Gradient grad_output, Gradient grad_h_n, Gradient grad_c_n,
    Gradient grad_cells, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0, std::vector<Tensor> weights,
    std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved,
    Tensor saved_tangent, Tensor states, std::optional<Tensor> h, std::optional<Tensor> wide, int64_t wanted) {
  BackwardCall call(cell, bias, bidirectional, input, weights);
  Backward& g = call.g;
  Arguments& args = call.args;
  args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  args.refuse_tokens();
  call.read(grad_output, grad_h_n, grad_c_n, grad_cells, saved);
  g.saved_tangent = args.hold(args.checked(saved_tangent, "saved_tangent", args.saved_shape()));
  g.traced_states = args.hold(args.checked(states, "states", args.rows(g.directions * args.cell.states * g.hidden)));
  g.added_h = args.optional_data(h, "h", args.rows(g.directions * g.output_size));
  FUSED_RNN_CHECK(!wide || args.has_projection, "fused_rnn: wide is h before a projection, and this layer has none");
  g.added_wide = args.optional_data(wide, "wide", args.rows(g.directions * g.hidden));
  call.write(wanted);
  Tensor wide_tangent = call.trace(args.has_projection && (wanted & kWeightHr), g.hidden);
  g.trace_wide = args.has_projection && (wanted & kWeightHr) ? wide_tangent.data_ptr() : nullptr;
  call.run();
  return {call.grad_input, call.grad_h0, call.grad_c0, wide_tangent, call.grad_weights};
}

}  // namespace fused_rnn
