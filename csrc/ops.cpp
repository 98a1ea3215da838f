// The operators: their schemas, every check of their arguments, every allocation. Engines see only problem.h.
#include "ops.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <sstream>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "engine.h"

// Not STD_TORCH_CHECK, which puts the file and line before the message: these are read by users. What the message is
// made of is evaluated only when it is needed.
#define FUSED_RNN_CHECK(condition, ...) \
  if (!(condition)) fail(__VA_ARGS__)

namespace fused_rnn {
namespace {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace

void unknown_value(const char* what, int64_t value) { fail("fused_rnn: unknown ", what, " ", value); }

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using Shape = std::vector<int64_t>;

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

std::string text(const Shape& shape) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << ']';
  return out.str();
}

Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

// The tensor, contiguous, after it was found to have this shape and the input's dtype and device.
class Checker {
 public:
  explicit Checker(const Tensor& like) : dtype_(like.scalar_type()), device_(like.device()) {}

  Tensor operator()(const Tensor& t, const char* name, const Shape& shape) const { return as(t, name, shape, dtype_); }

  Tensor as(const Tensor& t, const char* name, const Shape& shape, ScalarType dtype) const {
    FUSED_RNN_CHECK(shape_of(t) == shape, "fused_rnn: ", name, " must be ", text(shape), ", got ", text(shape_of(t)));
    FUSED_RNN_CHECK(t.scalar_type() == dtype, "fused_rnn: ", name, " must be ", torch::headeronly::toString(dtype),
                    ", got ", torch::headeronly::toString(t.scalar_type()));
    FUSED_RNN_CHECK(t.device() == device_, "fused_rnn: ", name, " is not on the input's device");
    return torch::stable::contiguous(t);
  }

 private:
  ScalarType dtype_;
  torch::stable::Device device_;
};

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat;
    case ScalarType::Double:
      return Dtype::kDouble;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kHalf;
    default:
      fail("fused_rnn: input must be float32, float64, bfloat16 or float16, got ",
           torch::headeronly::toString(t.scalar_type()));
  }
}

Shape concat(std::initializer_list<Shape> parts) {
  Shape all;
  for (const Shape& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

// A layer's arguments, checked, in the form an engine reads, and the tensors that keep it alive.
struct Arguments {
  CellTraits cell;
  Checker checked;
  Shape members;    // {M}, or empty: then nothing has a member dimension
  Shape row_shape;  // {T, B}, or {N} when packed
  int64_t weights_per_direction = 0;
  bool has_bias = false, has_projection = false;
  std::vector<Tensor> held;
  Shape offsets, packed_lengths;

  Arguments(Layer& layer, int64_t cell_id, bool bias, bool bidirectional, const Tensor& input,
            const std::optional<Tensor>& h0, const std::optional<Tensor>& c0, const std::vector<Tensor>& weights,
            const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
            const std::optional<Tensor>& reset_mask)
      : cell(traits_of(cell_id)), checked(input) {
    layer.cell = cell_id;
    layer.dtype = dtype_of(input);
    layer.directions = bidirectional ? 2 : 1;
    read_weight_layout(layer, bias, weights);
    read_rows(layer, input, batch_sizes);
    read_weights(layer, weights);
    layer.saved_width = (cell.saved + cell.states - 1) * layer.hidden + layer.output_size;

    const Shape states = concat({members, {layer.directions, layer.batch}});
    layer.h0 = optional_data(h0, "h0", concat({states, {layer.output_size}}));
    FUSED_RNN_CHECK(!c0 || cell.states > 1, "fused_rnn: this cell has no second state, but c0 was given");
    layer.c0 = optional_data(c0, "c0", concat({states, {layer.hidden}}));
    read_lengths(layer, lengths);
    if (reset_mask) {
      layer.reset_member_stride = per_member(*reset_mask, 2) ? layer.steps * layer.batch : 0;
      layer.reset = static_cast<const uint8_t*>(hold(checked.as(
          *reset_mask, "reset_mask",
          concat({per_member(*reset_mask, 2) ? members : Shape{}, {layer.steps, layer.batch}}), ScalarType::Bool)));
    }
  }
  Arguments(const Arguments&) = delete;

  const void* hold(Tensor t) {
    held.push_back(t);
    return t.const_data_ptr();
  }
  const void* optional_data(const std::optional<Tensor>& t, const char* name, const Shape& shape) {
    return t ? hold(checked(*t, name, shape)) : nullptr;
  }

 private:
  // Has this argument a member dimension before its own `dims`? Those without one are shared by all members.
  bool per_member(const Tensor& t, int64_t dims) const { return !members.empty() && t.dim() == dims + 1; }

  void read_weight_layout(Layer& layer, bool bias, const std::vector<Tensor>& weights) {
    const int64_t least = 1 + cell.recurrent + (bias ? 1 + cell.recurrent : 0) + (cell.params > 0);
    const int64_t given = static_cast<int64_t>(weights.size());
    weights_per_direction = given / layer.directions;
    has_bias = bias;
    has_projection = weights_per_direction == least + 1;
    FUSED_RNN_CHECK(given % layer.directions == 0 && (weights_per_direction == least || has_projection),
                    "fused_rnn: weights must hold ", least, " tensors for each of ", layer.directions,
                    " directions, or ", least + 1, " with a projection, got ", given, " in all");
    FUSED_RNN_CHECK(!has_projection || cell.projectable, "fused_rnn: this cell cannot be projected (proj_size)");
    const Tensor& ih = weights[0];
    FUSED_RNN_CHECK(ih.dim() == 2 || ih.dim() == 3, "fused_rnn: weight_ih must be [", cell.gates, "H, I], or [M, ",
                    cell.gates, "H, I] for M members, got ", text(shape_of(ih)));
    if (ih.dim() == 3) members = {ih.size(0)};
    layer.members = members.empty() ? 1 : members[0];
    layer.hidden = ih.size(-2) / cell.gates;
    layer.input_size = ih.size(-1);
    const Tensor& last = weights[weights_per_direction - 1];
    FUSED_RNN_CHECK(!has_projection || last.dim() == ih.dim(),
                    "fused_rnn: weight_hr must be [P, H], with the members "
                    "first if weight_ih has them, got ",
                    text(shape_of(last)));
    layer.output_size = has_projection ? last.size(-2) : layer.hidden;
  }

  void read_rows(Layer& layer, const Tensor& input, const std::optional<Tensor>& batch_sizes) {
    const int64_t row_dims = batch_sizes ? 1 : 2;
    const bool own = per_member(input, row_dims + 1);
    FUSED_RNN_CHECK(own || input.dim() == row_dims + 1, "fused_rnn: input must be ",
                    batch_sizes ? "[rows, I]" : "[T, B, I]",
                    members.empty() ? "" : ", members first if each has its own", ", got ", text(shape_of(input)));
    const Shape shape = shape_of(input);
    row_shape = Shape(shape.begin() + own, shape.end() - 1);
    if (batch_sizes) {
      read_batch_sizes(layer, *batch_sizes);
    } else {
      layer.steps = row_shape[0];
      layer.batch = row_shape[1];
      layer.rows = layer.steps * layer.batch;
    }
    FUSED_RNN_CHECK(layer.steps > 0, "Expected sequence length to be larger than 0 in RNN");
    layer.input_member_stride = own ? layer.rows * layer.input_size : 0;
    layer.input = hold(checked(input, "input", concat({own ? members : Shape{}, row_shape, {layer.input_size}})));
  }

  void read_batch_sizes(Layer& layer, const Tensor& batch_sizes) {
    FUSED_RNN_CHECK(batch_sizes.device().type() == DeviceType::CPU && batch_sizes.scalar_type() == ScalarType::Long &&
                        batch_sizes.dim() == 1,
                    "fused_rnn: batch_sizes must be a 1-D int64 tensor on the CPU");
    const Tensor contiguous = torch::stable::contiguous(batch_sizes);
    const int64_t* sizes = contiguous.const_data_ptr<int64_t>();
    layer.steps = batch_sizes.size(0);
    int64_t row = 0;
    for (int64_t t = 0; t < layer.steps; ++t) {
      FUSED_RNN_CHECK(sizes[t] > 0 && sizes[t] <= (t ? sizes[t - 1] : row_shape[0]),
                      "fused_rnn: batch_sizes must be positive, never grow and not exceed the rows, got ", sizes[t],
                      " at step ", t);
      offsets.push_back(row);
      row += sizes[t];
    }
    FUSED_RNN_CHECK(row == row_shape[0], "fused_rnn: batch_sizes add up to ", row, " rows, but the input has ",
                    row_shape[0]);
    layer.batch = layer.steps > 0 ? sizes[0] : 0;
    packed_lengths.assign(layer.batch, 0);
    for (int64_t t = 0; t < layer.steps; ++t)
      for (int64_t b = 0; b < sizes[t]; ++b) packed_lengths[b] = t + 1;
    layer.rows = row;
    layer.offsets = offsets.data();
    layer.lengths = packed_lengths.data();
    layer.lengths_member_stride = 0;
  }

  void read_weights(Layer& layer, const std::vector<Tensor>& weights) {
    const int64_t gate_rows = cell.gates * layer.hidden;
    for (int64_t d = 0; d < layer.directions; ++d) {
      const Tensor* next = &weights[d * weights_per_direction];
      Weights& w = layer.weights[d];
      const auto take = [&](const char* name, Shape shape) {
        return hold(checked(*next++, name, concat({members, shape})));
      };
      w.ih = take("weight_ih", {gate_rows, layer.input_size});
      if (cell.recurrent) w.hh = take("weight_hh", {gate_rows, layer.output_size});
      if (has_bias) w.bias_ih = take("bias_ih", {gate_rows});
      if (has_bias && cell.recurrent) w.bias_hh = take("bias_hh", {gate_rows});
      if (cell.params > 0) w.params = take("weight_params", {cell.params, layer.hidden});
      if (has_projection) w.hr = take("weight_hr", {layer.output_size, layer.hidden});
    }
  }

  void read_lengths(Layer& layer, const std::optional<Tensor>& lengths) {
    if (!lengths) return;
    FUSED_RNN_CHECK(!layer.offsets, "fused_rnn: packed input has its lengths already, so `lengths` must be left out");
    const bool own = per_member(*lengths, 1);
    const Tensor held_lengths =
        checked.as(*lengths, "lengths", concat({own ? members : Shape{}, {layer.batch}}), ScalarType::Long);
    layer.lengths = static_cast<const int64_t*>(hold(held_lengths));
    layer.lengths_member_stride = own ? layer.batch : 0;
    if (held_lengths.device().type() != DeviceType::CPU) return;  // reading them would wait for the device
    for (int64_t i = 0; i < held_lengths.numel(); ++i)
      FUSED_RNN_CHECK(0 <= layer.lengths[i] && layer.lengths[i] <= layer.steps,
                      "fused_rnn: lengths must lie between 0 and the number of steps, ", layer.steps, ", got ",
                      layer.lengths[i], " for row ", i);
  }
};

Scratch scratch_like(const Tensor& input, std::vector<Tensor>& held) {
  return [&](int64_t bytes) {
    held.push_back(torch::stable::new_empty(input, {bytes}, ScalarType::Byte));
    return held.back().data_ptr();
  };
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
    std::optional<Tensor> reset_mask, bool save, bool cells) {
  Forward f = {};
  Arguments args(f, cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  FUSED_RNN_CHECK(!cells || args.cell.states > 1, "fused_rnn: this cell has no second state to return at every step");

  const auto allocate = [&](bool asked, Shape shape) {
    return torch::stable::new_empty(input, asked ? concat({args.members, shape}) : Shape{0});
  };
  const int64_t D = f.directions, B = f.batch, H = f.hidden, P = f.output_size;
  const bool two_states = args.cell.states > 1;
  Tensor output = allocate(true, concat({args.row_shape, {D * P}}));
  Tensor h_n = allocate(true, {D, B, P});
  Tensor c_n = allocate(two_states, {D, B, H});
  Tensor all_cells = allocate(cells, concat({args.row_shape, {D * H}}));
  Tensor saved = allocate(save, concat({{D}, args.row_shape, {f.saved_width}}));
  f.output = output.data_ptr();
  f.h_n = h_n.data_ptr();
  f.c_n = two_states ? c_n.data_ptr() : nullptr;
  f.cells = cells ? all_cells.data_ptr() : nullptr;
  f.saved = save ? saved.data_ptr() : nullptr;

  engine_for(input.device().type()).forward(f, scratch_like(input, args.held));
  return {output, h_n, c_n, all_cells, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    int64_t cell, bool bias, bool bidirectional, std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n,
    std::optional<Tensor> grad_c_n, std::optional<Tensor> grad_cells, Tensor input, std::optional<Tensor> h0,
    std::optional<Tensor> c0, std::vector<Tensor> weights, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved, int64_t wanted,
    int64_t weight_groups, bool norms) {
  Backward g = {};
  Arguments args(g, cell, bias, bidirectional, input, h0, c0, weights, lengths, batch_sizes, reset_mask);
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

  const auto allocate = [&](bool asked, const Shape& shape) {
    return torch::stable::new_empty(input, asked ? shape : Shape{0});
  };
  const bool to_input = wanted & kInput;
  Tensor grad_input = allocate(to_input, rows(g.input_size));
  Tensor grad_h0 = allocate(true, states(P));
  Tensor grad_c0 = allocate(two_states, states(H));
  const ScalarType arithmetic = g.dtype == Dtype::kDouble ? ScalarType::Double : ScalarType::Float;
  Tensor grad_norms = torch::stable::new_empty(
      input, norms ? concat({args.members, {D, args.cell.states, g.steps}}) : Shape{0}, arithmetic);
  g.grad_input = to_input ? grad_input.data_ptr() : nullptr;
  g.grad_h0 = grad_h0.data_ptr();
  g.grad_c0 = two_states ? grad_c0.data_ptr() : nullptr;
  g.grad_norms = norms ? grad_norms.data_ptr() : nullptr;

  std::vector<Tensor> grad_weights;
  for (int64_t d = 0; d < D; ++d) {
    const auto take = [&](bool exists, Wanted kind) -> void* {
      if (!exists) return nullptr;
      Shape shape = shape_of(weights[grad_weights.size()]);
      if (weight_groups > 1) shape.insert(shape.begin() + args.members.size(), weight_groups);
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

  engine_for(input.device().type()).backward(g, scratch_like(input, args.held));
  return {grad_input, grad_h0, grad_c0, grad_norms, grad_weights};
}

}  // namespace fused_rnn

// One layer over a whole sequence. Padded input is [T, B, I]; packed input (batch_sizes given) is [rows, I]. Weights
// come in torch's order for each direction. With weights of one more dimension, M members run side by side, each with
// its own weights; input, lengths and reset_mask may then be shared or per member, everything else is per member.
// fused_rnn/_ops.py documents every argument.
STABLE_TORCH_LIBRARY(fused_rnn, m) {
  m.def(
      "layer_forward(int cell, bool bias, bool bidirectional, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, bool save, bool cells) "
      "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  m.def(
      "layer_backward(int cell, bool bias, bool bidirectional, Tensor? grad_output, Tensor? grad_h_n, "
      "Tensor? grad_c_n, Tensor? grad_cells, Tensor input, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, "
      "Tensor? batch_sizes, Tensor? reset_mask, Tensor saved, int wanted, int weight_groups, bool norms) "
      "-> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor grad_norms, Tensor[] grad_weights)");
  m.def("cuda_identity(Tensor input) -> Tensor");
}
