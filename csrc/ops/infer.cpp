// Inference of a stack of layers in one operator call, which saves nothing for a backward pass.
#include <torch/csrc/stable/library.h>

#include "core/engine.h"
#include "ops/arguments.h"
#include "ops/memory.h"
#include "ops/ops.h"
#include "ops/packed.h"
#include "ops/stack_code.h"

namespace fused_rnn {
namespace {

using torch::headeronly::ScalarType;

// The leading dimensions of input and output, and of the states.
struct Outline {
  int64_t steps, batch;
  Shape rows, states;
  bool is_step = false;  // h is the output, too
};

Outline outline_of(const Tensor& input, int64_t layout, int64_t states, bool packed) {
  const bool tokens = holds_tokens(input);
  const int64_t dims = input.dim() + tokens;
  const bool fits = layout == kOneStep ? dims == 2 && !packed && !tokens : dims == 3 || dims == 2;
  FUSED_RNN_CHECK(fits, "fused_rnn: infer takes no input of ", dims, " dimensions in layout ", layout);
  const Shape sizes = shape_of(input);
  if (layout == kOneStep) {
    FUSED_RNN_CHECK(states == 1, "fused_rnn: a single step is one layer's, in one direction");
    return {1, sizes[0], {sizes[0]}, {sizes[0]}, true};
  }
  if (dims == 2) return {sizes[0], 1, {sizes[0]}, {states}};
  if (layout == kTimeMajor) return {sizes[0], sizes[1], {sizes[0], sizes[1]}, {states, sizes[1]}};
  FUSED_RNN_CHECK(layout == kBatchFirst, "fused_rnn: unknown layout ", layout);
  FUSED_RNN_CHECK(sizes[0] == 1 || sizes[1] == 1, "fused_rnn: batch_first needs one row or one step, got ",
                  text(sizes));
  return {sizes[1], sizes[0], {sizes[0], sizes[1]}, {states, sizes[0]}};
}

// Null stays null.
template <class T>
T* offset(T* data, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return data ? static_cast<Byte*>(data) + bytes : nullptr;
}

void take_rows(Arguments& args, const Tensor& input, const Outline& outline) {
  FUSED_RNN_CHECK(outline.steps > 0, "fused_rnn: infer needs a step to take");
  args.take_rows(input, outline.rows, outline.steps, outline.batch);
}

// The tensors of one call: what runs through the layers, and their states. Layers are run in order.
class StackRun {
 public:
  // `dtype`: of the results, unless that of `like`.
  StackRun(const Engine& engine, const Tensor& input, const Tensor& like, std::optional<ScalarType> dtype,
           const std::optional<Tensor>& h0, const std::optional<Tensor>& c0)
      : engine_(engine), like_(like), dtype_(dtype), h0_(h0), c0_(c0), data_(input) {}

  // The next layer's input.
  const Tensor& data() const { return data_; }

  // Runs layer k, of which everything but states and results has been read.
  void layer(int64_t k, Forward& f, const Arguments& args, const Outline& outline, bool cells = false) {
    const int64_t D = f.directions, P = f.output_size, W = args.further_width();
    const bool two_states = args.cell.states > 1;
    const Shape h_shape = concat({outline.states, {P}}), c_shape = concat({outline.states, {W}});
    if (k == 0) {
      FUSED_RNN_CHECK(!two_states || h0_.has_value() == c0_.has_value(), "fused_rnn: h0 and c0 come together");
      if (h0_) held_h0_ = args.checked(*h0_, "h0", h_shape);
      if (c0_) held_c0_ = args.checked(*c0_, "c0", c_shape);
      FUSED_RNN_CHECK(!c0_ || two_states, "fused_rnn: this cell has no second state, but c0 was given");
      h_n_ = new_tensor(like_, h_shape, dtype_);
      if (two_states) c_n_ = new_tensor(like_, c_shape, dtype_);
    }
    FUSED_RNN_CHECK(same(h_n_->sizes(), h_shape) && (!c_n_ || same(c_n_->sizes(), c_shape)),
                    "fused_rnn: layers of a stack must be of one width");
    const int64_t element = static_cast<int64_t>(h_n_->element_size());
    const int64_t h_bytes = k * D * f.batch * P * element, c_bytes = k * D * f.batch * W * element;
    f.h0 = offset(held_h0_ ? address_of(*held_h0_) : nullptr, h_bytes);
    f.c0 = offset(held_c0_ ? address_of(*held_c0_) : nullptr, c_bytes);
    f.h_n = offset(h_n_->data_ptr(), h_bytes);
    std::optional<Tensor> output;
    if (!outline.is_step) output = new_tensor(like_, concat({outline.rows, {D * P}}), dtype_);
    f.output = output ? output->data_ptr() : f.h_n;
    f.c_n = offset(c_n_ ? c_n_->data_ptr() : nullptr, c_bytes);
    if (cells) {
      cells_ = new_tensor(like_, concat({outline.rows, {D * W}}), dtype_);
      f.cells = cells_->data_ptr();
    }

    skip_steps_without_rows(f);
    CallScratch scratch(like_);
    engine_.forward(f, [&](int64_t bytes) { return scratch.take(bytes); });
    if (output) data_ = std::move(*output);
  }

  std::vector<Tensor> results(const Outline& outline) {
    std::vector<Tensor> found;
    found.reserve(4);
    if (!outline.is_step) found.push_back(std::move(data_));
    found.push_back(std::move(*h_n_));
    if (c_n_) found.push_back(std::move(*c_n_));
    if (cells_) found.push_back(std::move(*cells_));
    return found;
  }

 private:
  const Engine& engine_;
  const Tensor& like_;
  const std::optional<ScalarType> dtype_;
  const std::optional<Tensor>&h0_, &c0_;
  Tensor data_;
  std::optional<Tensor> held_h0_, held_c0_, h_n_, c_n_, cells_;
};

// These operators have no gradient, and below autograd they cannot tell whether an argument requires one.
void refuse_gradients() {
  FUSED_RNN_CHECK(!aoti_torch_grad_mode_is_enabled(),
                  "fused_rnn: infer has no gradient: call it under torch.no_grad() or torch.inference_mode()");
}

}  // namespace

std::vector<Tensor> infer(int64_t stack, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                          std::vector<Tensor> weights, std::optional<std::vector<Tensor>> packed,
                          std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
                          std::optional<Tensor> reset_mask, bool cells, std::optional<int64_t> own_cell) {
  refuse_gradients();
  const StackCode code(stack);
  FUSED_RNN_CHECK(own_cell.has_value() == (code.cell == StackCode::kOwnCell),
                  "fused_rnn: own_cell goes with a stack code that asks for it");
  const int64_t cell = own_cell.value_or(code.cell);
  const int64_t L = code.num_layers, per_layer = L > 0 ? weights.size() / L : 0;
  FUSED_RNN_CHECK(L > 0 && static_cast<int64_t>(weights.size()) == L * per_layer,
                  "fused_rnn: weights must hold as many tensors for each of ", L, " layers, got ", weights.size());
  FUSED_RNN_CHECK(!packed || static_cast<int64_t>(packed->size()) == L,
                  "fused_rnn: packed must hold one tensor for each of ", L, " layers, got ", packed->size());
  const Engine& engine = engine_for(input.device().type());
  StackRun run(engine, input, like_of(input, weights), std::nullopt, h0, c0);
  const int64_t states = L * (code.bidirectional ? 2 : 1);
  Outline outline = outline_of(input, code.layout, states, batch_sizes.has_value());
  for (int64_t k = 0; k < L; ++k) {
    Forward f = {};
    const auto own_weights = std::span(weights).subspan(k * per_layer, per_layer);
    Arguments args(f, cell, code.bias, code.bidirectional, run.data(), own_weights);
    FUSED_RNN_CHECK(args.members.empty(), "fused_rnn: infer runs no members");
    if (batch_sizes) {
      args.read_rows(run.data(), batch_sizes);
      outline = {f.steps, f.batch, args.row_shape, {states, f.batch}};
    } else {
      take_rows(args, run.data(), outline);
    }
    args.read_weights(own_weights);
    if (packed) take_packed(f, (*packed)[k], code.bias, own_weights, engine);
    if (lengths) args.read_lengths(lengths);
    args.check_tokens();
    if (reset_mask) args.take_reset(*reset_mask, batch_sizes ? Shape{f.steps, f.batch} : outline.rows);
    FUSED_RNN_CHECK(!cells || (args.cell.states > 1 && L == 1),
                    "fused_rnn: only a single layer of a cell with two states returns the second of every step");
    run.layer(k, f, args, outline, cells);
  }
  return run.results(outline);
}

std::vector<Tensor> infer_layer(int64_t stack, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                                Tensor weight_ih, std::optional<Tensor> weight_hh, std::optional<Tensor> bias_ih,
                                std::optional<Tensor> bias_hh) {
  refuse_gradients();
  const StackCode code(stack);
  FUSED_RNN_CHECK(code.num_layers == 1 && !code.bidirectional,
                  "fused_rnn: infer_layer runs one layer, in one direction");
  const Outline outline = outline_of(input, code.layout, 1, false);
  Forward f = {};
  if (is_packed(weight_ih)) {
    FUSED_RNN_CHECK(!weight_hh && !bias_ih && !bias_hh, "fused_rnn: packed weights are all of a layer's");
    const Engine& engine = engine_for(input.device().type());
    read_packed(weight_ih, f, engine);
    FUSED_RNN_CHECK(f.cell == code.cell && f.directions == 1,
                    "fused_rnn: these weights were packed for another kind of layer");
    Arguments args(f, input);
    take_rows(args, input, outline);
    args.check_tokens();
    std::optional<ScalarType> dtype;
    if (f.tokens) dtype = scalar_type_of(f.dtype);
    StackRun run(engine, input, input, dtype, h0, c0);
    run.layer(0, f, args, outline);
    return run.results(outline);
  }
  std::vector<Tensor> weights;
  weights.reserve(4);
  weights.push_back(std::move(weight_ih));
  for (std::optional<Tensor>* weight : {&weight_hh, &bias_ih, &bias_hh})
    if (*weight) weights.push_back(std::move(**weight));
  Arguments args(f, code.cell, code.bias, false, input, weights);
  FUSED_RNN_CHECK(args.members.empty(), "fused_rnn: infer runs no members");
  take_rows(args, input, outline);
  args.read_weights(weights);
  args.check_tokens();
  StackRun run(engine_for(input.device().type()), input, like_of(input, weights), std::nullopt, h0, c0);
  run.layer(0, f, args, outline);
  return run.results(outline);
}

}  // namespace fused_rnn
