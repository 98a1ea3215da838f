// The operators: their schemas, and what each allocates and asks of an engine. Engines see only problem.h.
#include "ops.h"

#include <torch/csrc/stable/library.h>

#include <array>

#include "arguments.h"
#include "engine.h"
#include "memory.h"

namespace fused_rnn {

void unknown_value(const char* what, int64_t value) { fail("fused_rnn: unknown ", what, " ", value); }

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

std::array<const Engine*, 2>& engines() {
  static std::array<const Engine*, 2> table = {};
  return table;
}

// The bits of `wanted`, fused_rnn/_ops.py has the same. Gradients of the states cost nothing and always come.
enum Wanted : int64_t {
  kInput = 1,
  kWeightIh = 2,
  kWeightHh = 4,
  kBiasIh = 8,
  kBiasHh = 16,
  kWeightHr = 32,
  kParameters = 64,
};

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
    std::optional<Tensor> reset_mask, bool save, bool cells) {
  Forward f = {};
  Arguments args(f, cell, bias, bidirectional, input, weights);
  args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  FUSED_RNN_CHECK(!cells || args.cell.states > 1, "fused_rnn: this cell has no second state to return at every step");

  const auto allocate = [&](bool asked, Shape shape) {
    return new_tensor(input, asked ? concat({args.members, shape}) : Shape{0});
  };
  const int64_t D = f.directions, B = f.batch, H = f.hidden, P = f.output_size;
  const bool two_states = args.cell.states > 1;
  Tensor output = allocate(true, concat({args.row_shape, {D * P}}));
  Tensor h_n = allocate(true, {D, B, P});
  Tensor c_n = allocate(two_states, {D, B, H});
  Tensor all_cells = allocate(cells, concat({args.row_shape, {D * H}}));
  const Shape saved_shape = concat({args.members, {D}, args.row_shape, {f.saved_width}});
  Tensor saved = save ? recycled_tensor(input, saved_shape) : new_tensor(input, {0});
  f.output = output.data_ptr();
  f.h_n = h_n.data_ptr();
  f.c_n = two_states ? c_n.data_ptr() : nullptr;
  f.cells = cells ? all_cells.data_ptr() : nullptr;
  f.saved = save ? saved.data_ptr() : nullptr;

  CallScratch scratch(input);
  engine_for(input.device().type()).forward(f, [&](int64_t bytes) { return scratch.take(bytes); });
  return {output, h_n, c_n, all_cells, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    int64_t cell, bool bias, bool bidirectional, std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n,
    std::optional<Tensor> grad_c_n, std::optional<Tensor> grad_cells, Tensor input, std::optional<Tensor> h0,
    std::optional<Tensor> c0, std::vector<Tensor> weights, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved, int64_t wanted,
    int64_t weight_groups, bool norms) {
  Backward g = {};
  Arguments args(g, cell, bias, bidirectional, input, weights);
  args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  const int64_t D = g.directions, B = g.batch, H = g.hidden, P = g.output_size;
  const bool two_states = args.cell.states > 1;
  FUSED_RNN_CHECK(saved.dim() > 1, "fused_rnn: nothing was saved for this gradient; run layer_forward with save=True");
  FUSED_RNN_CHECK(weight_groups >= 1 && B % weight_groups == 0 && (weight_groups == 1 || !batch_sizes),
                  "fused_rnn: weight_groups must divide a padded batch, got ", weight_groups, " groups for ", B,
                  " rows");
  const auto states = [&](int64_t width) { return concat({args.members, {D, B, width}}); };
  const auto rows = [&](int64_t width) { return concat({args.members, args.row_shape, {width}}); };
  g.saved = args.hold(args.checked(saved, "saved", concat({args.members, {D}, args.row_shape, {g.saved_width}})));
  g.grad_output = args.optional_data(grad_output, "grad_output", rows(D * P));
  g.grad_h_n = args.optional_data(grad_h_n, "grad_h_n", states(P));
  FUSED_RNN_CHECK(two_states || !(grad_c_n || grad_cells),
                  "fused_rnn: this cell has no second state, but grad_c_n or grad_cells was given");
  g.grad_c_n = args.optional_data(grad_c_n, "grad_c_n", states(H));
  g.grad_cells = args.optional_data(grad_cells, "grad_cells", rows(D * H));
  g.weight_groups = weight_groups;

  const auto allocate = [&](bool asked, const Shape& shape) { return new_tensor(input, asked ? shape : Shape{0}); };
  const bool to_input = wanted & kInput;
  Tensor grad_input = allocate(to_input, rows(g.input_size));
  Tensor grad_h0 = allocate(true, states(P));
  Tensor grad_c0 = allocate(two_states, states(H));
  const ScalarType arithmetic = g.dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
  Tensor grad_norms =
      new_tensor(input, norms ? concat({args.members, {D, args.cell.states, g.steps}}) : Shape{0}, arithmetic);
  g.grad_input = to_input ? grad_input.data_ptr() : nullptr;
  g.grad_h0 = grad_h0.data_ptr();
  g.grad_c0 = two_states ? grad_c0.data_ptr() : nullptr;
  g.grad_norms = norms ? grad_norms.data_ptr() : nullptr;

  std::vector<Tensor> grad_weights;
  for (int64_t d = 0; d < D; ++d) {
    const auto take = [&](bool exists, Wanted kind) -> void* {
      if (!exists) return nullptr;
      Shape shape = shape_of(weights[grad_weights.size()]);
      if (weight_groups > 1) shape.insert(args.members.size(), weight_groups);
      grad_weights.push_back(allocate(wanted & kind, shape));
      return wanted & kind ? grad_weights.back().data_ptr() : nullptr;
    };
    WeightGradients& w = g.grads[d];
    w.ih = take(true, kWeightIh);
    w.hh = take(args.cell.recurrent, kWeightHh);
    w.bias_ih = take(bias, kBiasIh);
    w.bias_hh = take(bias && args.cell.recurrent, kBiasHh);
    w.params = take(args.cell.params > 0, kParameters);
    w.hr = take(args.has_projection, kWeightHr);
  }

  CallScratch scratch(input);
  engine_for(input.device().type()).backward(g, [&](int64_t bytes) { return scratch.take(bytes); });
  return {grad_input, grad_h0, grad_c0, grad_norms, grad_weights};
}

}  // namespace fused_rnn

// One layer over a whole sequence. Padded input is [T, B, I]; packed input (batch_sizes given) is [rows, I]. Weights
// come in torch's order for each direction. With weights of one more dimension, M members run side by side, each with
// its own weights; input, lengths and reset_mask may then be shared or per member, everything else is per member.
// fused_rnn/_ops.py documents every argument.
FUSED_RNN_DEFINE_OPERATORS(FUSED_RNN_LIBRARY, m) {
  m.def(
      "layer_forward(int cell, bool bias, bool bidirectional, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, bool save, bool cells) "
      "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  m.def(
      "layer_backward(int cell, bool bias, bool bidirectional, Tensor? grad_output, Tensor? grad_h_n, "
      "Tensor? grad_c_n, Tensor? grad_cells, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, Tensor? reset_mask, Tensor saved, int wanted, int weight_groups, bool norms) "
      "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor grad_norms, Tensor[] grad_weights)");
  // A stack of layers without gradients; the states are all layers', as the results are: output, h_n and, if there is a
  // second state, c_n.
  m.def(
      "infer(int cell, int num_layers, bool bias, bool bidirectional, int layout, Tensor input, Tensor? h0, Tensor? "
      "c0, "
      "Tensor[] weights, Tensor[] packed, Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask) -> Tensor[]");
  // One layer's weights made ready for `infer`, whose `packed` is empty or has one of these for each layer. Only for
  // these very tensors, in this process: what it holds, and in which order, is the engine's own affair.
  m.def("pack_weights(int cell, bool bias, bool bidirectional, Tensor[] weights) -> Tensor");
  m.def("cuda_identity(Tensor input) -> Tensor");
}
