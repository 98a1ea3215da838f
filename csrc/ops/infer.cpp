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
};

Outline outline_of(const Tensor& input, int64_t layout, int64_t states, bool packed) {
  const bool tokens = holds_tokens(input);
  const int64_t dims = input.dim() + tokens;
  const bool fits = layout == kOneStep ? dims == 2 && !packed && !tokens : dims == 3 || dims == 2;
  FUSED_RNN_CHECK(fits, "fused_rnn: infer takes no input of ", dims, " dimensions in layout ", layout);
  const Shape sizes = shape_of(input);
  if (layout == kOneStep) {
    FUSED_RNN_CHECK(states == 1, "fused_rnn: a single step is one layer's, in one direction");
    return {1, sizes[0], {sizes[0]}, {sizes[0]}};
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

}  // namespace

std::vector<Tensor> infer(int64_t stack, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                          std::vector<Tensor> weights, std::optional<std::vector<Tensor>> packed,
                          std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
                          std::optional<Tensor> reset_mask, bool cells) {
  // This operator has no gradient, and below autograd it cannot tell whether an argument requires one.
  FUSED_RNN_CHECK(!aoti_torch_grad_mode_is_enabled(),
                  "fused_rnn: infer has no gradient: call it under torch.no_grad() or torch.inference_mode()");
  const auto [cell, L, bias, bidirectional, layout] = StackCode(stack);
  const int64_t D = bidirectional ? 2 : 1, per_layer = L > 0 ? weights.size() / L : 0;
  FUSED_RNN_CHECK(L > 0 && static_cast<int64_t>(weights.size()) == L * per_layer,
                  "fused_rnn: weights must hold as many tensors for each of ", L, " layers, got ", weights.size());
  FUSED_RNN_CHECK(!packed || static_cast<int64_t>(packed->size()) == L,
                  "fused_rnn: packed must hold one tensor for each of ", L, " layers, got ", packed->size());
  const Engine& engine = engine_for(input.device().type());
  Outline outline = outline_of(input, layout, L * D, batch_sizes.has_value());

  const Tensor& like = like_of(input, weights);
  const int64_t element = static_cast<int64_t>(like.element_size());
  Tensor data = input;
  std::optional<Tensor> held_h0, held_c0, h_n, c_n, all_cells;
  for (int64_t k = 0; k < L; ++k) {
    Forward f = {};
    const auto own_weights = std::span(weights).subspan(k * per_layer, per_layer);
    Arguments args(f, cell, bias, bidirectional, data, own_weights);
    FUSED_RNN_CHECK(args.members.empty(), "fused_rnn: infer runs no members");
    if (batch_sizes) {
      args.read_rows(data, batch_sizes);
      outline = {f.steps, f.batch, args.row_shape, {L * D, f.batch}};
    } else {
      FUSED_RNN_CHECK(outline.steps > 0, "fused_rnn: infer needs a step to take");
      args.take_rows(data, outline.rows, outline.steps, outline.batch);
    }
    args.read_weights(own_weights);
    if (packed) take_packed(f, (*packed)[k], bias, own_weights, engine);
    if (lengths) args.read_lengths(lengths);
    args.check_tokens();
    if (reset_mask) args.take_reset(*reset_mask, batch_sizes ? Shape{f.steps, f.batch} : outline.rows);

    const int64_t P = f.output_size, H = f.hidden;
    const bool two_states = args.cell.states > 1;
    const Shape h_shape = concat({outline.states, {P}}), c_shape = concat({outline.states, {H}});
    FUSED_RNN_CHECK(!cells || (two_states && L == 1),
                    "fused_rnn: only a single layer of a cell with two states returns the second of every step");
    if (k == 0) {
      FUSED_RNN_CHECK(!two_states || h0.has_value() == c0.has_value(), "fused_rnn: h0 and c0 come together");
      if (h0) held_h0 = args.checked(*h0, "h0", h_shape);
      if (c0) held_c0 = args.checked(*c0, "c0", c_shape);
      FUSED_RNN_CHECK(!c0 || two_states, "fused_rnn: this cell has no second state, but c0 was given");
      h_n = new_tensor(like, h_shape);
      if (two_states) c_n = new_tensor(like, c_shape);
    }
    FUSED_RNN_CHECK(same(h_n->sizes(), h_shape) && (!c_n || same(c_n->sizes(), c_shape)),
                    "fused_rnn: layers of a stack must be of one width");
    const int64_t h_bytes = k * D * f.batch * P * element, c_bytes = k * D * f.batch * H * element;
    f.h0 = offset(held_h0 ? address_of(*held_h0) : nullptr, h_bytes);
    f.c0 = offset(held_c0 ? address_of(*held_c0) : nullptr, c_bytes);
    Tensor output = new_tensor(like, concat({outline.rows, {D * P}}));
    f.output = output.data_ptr();
    if (cells) {
      all_cells = new_tensor(like, concat({outline.rows, {D * H}}));
      f.cells = all_cells->data_ptr();
    }
    f.h_n = offset(h_n->data_ptr(), h_bytes);
    f.c_n = offset(c_n ? c_n->data_ptr() : nullptr, c_bytes);

    skip_steps_without_rows(f);
    CallScratch scratch(like);
    engine.forward(f, [&](int64_t bytes) { return scratch.take(bytes); });
    data = output;
  }
  if (all_cells) return {data, *h_n, *c_n, *all_cells};
  if (c_n) return {data, *h_n, *c_n};
  return {data, *h_n};
}

}  // namespace fused_rnn
