// The backward operators: layer_backward, and those for second derivatives.
#include <torch/csrc/stable/library.h>

#include "ops/backward_call.h"
#include "ops/ops.h"

namespace fused_rnn {

using torch::headeronly::ScalarType;

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    int64_t cell, bool bias, bool bidirectional, Gradient grad_output, Gradient grad_h_n, Gradient grad_c_n,
    Gradient grad_cells, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0, std::vector<Tensor> weights,
    std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved,
    int64_t wanted, int64_t weight_groups, bool norms, std::optional<double> grad_clip, std::optional<Tensor> h_factor,
    std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h, std::optional<double> zoneout_c,
    std::optional<int64_t> checkpoint) {
  BackwardCall call(cell, bias, bidirectional, input, weights);
  Backward& g = call.g;
  call.args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  call.args.read_options({h_factor, zoneout_mask, zoneout_h, zoneout_c});
  FUSED_RNN_CHECK(weight_groups >= 1 && g.batch % weight_groups == 0 && (weight_groups == 1 || !batch_sizes),
                  "fused_rnn: weight_groups must divide a padded batch, got ", weight_groups, " groups for ", g.batch,
                  " rows");
  call.args.read_checkpoint(checkpoint, engine_for(call.like.device().type()));
  FUSED_RNN_CHECK(g.segment == 0 || weight_groups == 1, "fused_rnn: checkpoint does not go with weight_groups");
  call.read(grad_output, grad_h_n, grad_c_n, grad_cells, saved);
  g.weight_groups = weight_groups;
  g.grad_clip = clip_of(grad_clip);
  call.write(wanted);
  const Shape norm_shape = concat({call.args.members, {g.directions, call.args.cell.states, g.steps}});
  Tensor grad_norms = new_tensor(call.like, norms ? norm_shape : Shape{0}, call.args.arithmetic());
  g.grad_norms = norms ? grad_norms.data_ptr() : nullptr;
  call.run();
  return {call.grad_input, call.grad_h0, call.grad_c0, grad_norms, call.grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_trace(
    int64_t cell, bool bias, bool bidirectional, Gradient grad_output, Gradient grad_h_n, Gradient grad_c_n,
    Gradient grad_cells, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0, std::vector<Tensor> weights,
    std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved,
    std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h,
    std::optional<double> zoneout_c) {
  BackwardCall call(cell, bias, bidirectional, input, weights);
  Backward& g = call.g;
  call.args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  call.args.read_options({h_factor, zoneout_mask, zoneout_h, zoneout_c});
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
    Tensor saved_tangent, Tensor states, std::optional<Tensor> h, std::optional<Tensor> wide, int64_t wanted,
    std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h,
    std::optional<double> zoneout_c) {
  BackwardCall call(cell, bias, bidirectional, input, weights);
  Backward& g = call.g;
  Arguments& args = call.args;
  args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  args.read_options({h_factor, zoneout_mask, zoneout_h, zoneout_c});
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
