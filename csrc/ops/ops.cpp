// The operators: schemas, and the forward ones. Engines see only problem.h.
#include "ops/ops.h"

#include <torch/csrc/stable/library.h>

#include <array>

#include "ops/forward_call.h"

namespace fused_rnn {

void unknown_value(const char* what, int64_t value) { fail("fused_rnn: unknown ", what, " ", value); }

namespace {

using torch::headeronly::DeviceType;

std::array<const Engine*, 2>& engines() {
  static std::array<const Engine*, 2> table = {};
  return table;
}

}  // namespace

void add_engine(DeviceType device, const Engine& engine) {
  // Lives as long as the library: engines are added once, at load.
  engines()[device == DeviceType::CPU ? 0 : 1] = new Engine(engine);
}

const Engine& engine_for(DeviceType device) {
  const Engine* engine = engines()[device == DeviceType::CPU ? 0 : 1];
  FUSED_RNN_CHECK(engine != nullptr, "fused_rnn: no engine for this device in this build");
  return *engine;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(
    int64_t cell, bool bias, bool bidirectional, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
    std::vector<Tensor> weights, std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
    std::optional<Tensor> reset_mask, bool save, bool cells, std::optional<double> grad_clip,
    std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h,
    std::optional<double> zoneout_c, std::optional<int64_t> checkpoint) {
  Forward f = {};
  Arguments args(f, cell, bias, bidirectional, input, weights);
  args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  args.read_options({h_factor, zoneout_mask, zoneout_h, zoneout_c});
  const Tensor& like = like_of(input, weights);
  args.read_checkpoint(checkpoint, engine_for(like.device().type()));
  clip_of(grad_clip);
  return run_forward(f, args, like, save, cells);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_tangent(
    int64_t cell, bool bias, bool bidirectional, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
    std::vector<Tensor> weights, std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
    std::optional<Tensor> reset_mask, Tensor saved, std::optional<Tensor> x, std::optional<Tensor> r,
    std::optional<Tensor> h, bool cells, std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask,
    std::optional<double> zoneout_h, std::optional<double> zoneout_c) {
  Forward f = {};
  Arguments args(f, cell, bias, bidirectional, input, weights);
  args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  args.read_options({h_factor, zoneout_mask, zoneout_h, zoneout_c});
  args.refuse_tokens();
  const Shape gates = args.rows(f.directions * args.cell.gates * f.hidden);
  f.primal = args.hold(args.checked(saved, "saved", args.saved_shape()));
  f.tangent_x = args.optional_data(x, "x", gates);
  f.tangent_r = args.optional_data(r, "r", gates);
  FUSED_RNN_CHECK(!h || args.has_projection, "fused_rnn: h joins what a projection gives, and this layer has none");
  f.tangent_h = args.optional_data(h, "h", args.rows(f.directions * f.output_size));
  return run_forward(f, args, input, true, cells);
}

}  // namespace fused_rnn

// One layer over a whole sequence. Padded input is [T, B, I]; packed input (with batch_sizes) is [rows, I]. Weights are
// in torch's order for each direction. Weights with a leading dimension M are those of M members, which run side by
// side; input, lengths and reset_mask may then be shared, everything else is per member. Arguments are documented in
// fused_rnn/ops/layer.py.
#define FUSED_RNN_LOOP_OPTIONS \
  ", Tensor? h_factor=None, Tensor? zoneout_mask=None, float? zoneout_h=None, float? zoneout_c=None"
FUSED_RNN_DEFINE_OPERATORS(FUSED_RNN_LIBRARY, m) {
  m.def(
      "layer_forward(int cell, bool bias, bool bidirectional, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, bool save, bool cells, float? "
      "grad_clip=None" FUSED_RNN_LOOP_OPTIONS
      ", int? checkpoint=None) "
      "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  m.def(
      "layer_backward(int cell, bool bias, bool bidirectional, Tensor? grad_output, Tensor? grad_h_n, "
      "Tensor? grad_c_n, Tensor? grad_cells, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, Tensor? reset_mask, Tensor saved, int wanted, int weight_groups, bool norms, "
      "float? grad_clip=None" FUSED_RNN_LOOP_OPTIONS
      ", int? checkpoint=None) "
      "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor grad_norms, Tensor[] grad_weights)");
  // For second derivatives (problem.h). The derivative of layer_forward along a direction, given by x, r and h
  // (Forward::tangent_x, ...), h0 and c0.
  m.def(
      "layer_tangent(int cell, bool bias, bool bidirectional, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, Tensor saved, Tensor? x, Tensor? r, Tensor? h, "
      "bool cells" FUSED_RNN_LOOP_OPTIONS ") -> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  // Backward::trace_x, ...; r is empty if it would equal x, output and wide are empty without a projection.
  m.def(
      "layer_trace(int cell, bool bias, bool bidirectional, Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, "
      "Tensor? grad_cells, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, Tensor? reset_mask, Tensor saved" FUSED_RNN_LOOP_OPTIONS
      ") "
      "-> (Tensor x, Tensor r, Tensor states, Tensor output, Tensor wide)");
  // The derivative of layer_backward, given tangents of its gradients and of `saved`, and layer_trace's results. The
  // result `wide` is the tangent of layer_trace's, for the gradient of weight_hr.
  m.def(
      "layer_backward_tangent(int cell, bool bias, bool bidirectional, Tensor? grad_output, Tensor? grad_h_n, "
      "Tensor? grad_c_n, Tensor? grad_cells, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, Tensor? reset_mask, Tensor saved, Tensor saved_tangent, Tensor states, Tensor? h, "
      "Tensor? wide, int wanted" FUSED_RNN_LOOP_OPTIONS
      ") -> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor wide, Tensor[] "
      "grad_weights)");
  // With layer norm (normed.cpp).
  m.def(
      "normed_forward(int cell, bool bias, bool bidirectional, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "Tensor[] norms, Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, bool save, "
      "bool cells" FUSED_RNN_LOOP_OPTIONS ") -> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  // grad_norms, of each direction: NormSums (core/saved_row.h), in which the gradients of biases are.
  m.def(
      "normed_backward(int cell, bool bias, bool bidirectional, Tensor? grad_output, Tensor? grad_h_n, "
      "Tensor? grad_c_n, Tensor? grad_cells, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor[] norms, "
      "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, Tensor saved, int wanted, "
      "float? grad_clip=None" FUSED_RNN_LOOP_OPTIONS
      ") -> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights, Tensor[] grad_norms)");
  // Inference of a stack of layers; states are those of all layers. Returns output, h_n and, with a second state, c_n;
  // of a single step (kOneStep) only the states, as h is the output. Of a single layer also the second state after every
  // step, if asked for. Arguments that are rarely given come last: omitted ones cost less. `own_cell`: the id of a cell
  // that a plug-in brought.
  m.def(
      "infer(int stack, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor[]? packed=None, "
      "Tensor? lengths=None, Tensor? batch_sizes=None, Tensor? reset_mask=None, bool cells=False, int? own_cell=None) "
      "-> Tensor[]");
  // The same for one layer in one direction, whose arguments are as few as possible: a small step takes less time than
  // many of them. `weight_ih` may be what pack_weights returned for the layer; the other weights are then left out.
  m.def(
      "infer_layer(int stack, Tensor input, Tensor? h0, Tensor? c0, Tensor weight_ih, Tensor? weight_hh=None, "
      "Tensor? bias_ih=None, Tensor? bias_hh=None) -> Tensor[]");
  // A single step of a cell, `stack` in layout kOneStep: input [B, I], states [B, H]. Returns h, c if there is one, and
  // what step_backward needs. Called without gradients, by the cells' autograd function.
  m.def("step_forward(int stack, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights) -> Tensor[]");
  // Returns the gradients, in this order, of what `wanted` says of input and weights, and of the states that were given.
  m.def(
      "step_backward(int stack, Tensor? grad_h, Tensor? grad_c, Tensor input, Tensor? h0, Tensor? c0, "
      "Tensor[] weights, Tensor saved, int wanted) -> Tensor[]");
  // bool [rows, states * hidden]: where a random number of 16 bits is less than the bound of its state, h or a later one.
  // On the CPU alone.
  m.def("zoneout_mask(Tensor seed, int rows, int states, int hidden, int h_bound, int c_bound) -> Tensor");
  // Packs one layer's weights for `infer`, whose `packed` takes one of these for each layer. Valid only for these
  // tensors, in this process; the layout is the engine's own. `format`: a WeightFormat (core/problem.h).
  m.def("pack_weights(int cell, bool bias, bool bidirectional, Tensor[] weights, int format=0) -> Tensor");
}
