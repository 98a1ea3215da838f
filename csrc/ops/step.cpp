// A single step with gradients, for the cells: layer_forward and layer_backward of one step and direction, with the
// shapes of the cells' tensors. A small step takes less time than the many arguments of those operators.
#include <torch/csrc/stable/library.h>

#include "ops/backward_call.h"
#include "ops/ops.h"
#include "ops/stack_code.h"

namespace fused_rnn {
namespace {

StackCode step_of(int64_t code) {
  // These operators have no autograd of their own: fused_rnn/autograd/plain.py has it.
  FUSED_RNN_CHECK(!aoti_torch_grad_mode_is_enabled(),
                  "fused_rnn: the operators of a single step have no gradient: call a cell, fused_rnn.functional or "
                  "layer_forward");
  const StackCode stack(code);
  FUSED_RNN_CHECK(stack.layout == kOneStep && stack.num_layers == 1 && !stack.bidirectional,
                  "fused_rnn: a single step is one layer's, in one direction");
  return stack;
}

}  // namespace

std::vector<Tensor> step_forward(int64_t stack, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                                 std::vector<Tensor> weights) {
  const StackCode step = step_of(stack);
  Forward f = {};
  Arguments args(f, step.cell, step.bias, false, input, weights);
  args.take_step(input);
  args.read_weights(weights);
  args.read_states(h0, c0);
  Tensor h = new_tensor(input, args.states(f.output_size)), saved = recycled_tensor(input, args.saved_shape());
  f.output = f.h_n = h.data_ptr();
  f.saved = saved.data_ptr();
  std::vector<Tensor> results = {h};
  if (args.cell.states > 1) {
    results.push_back(new_tensor(input, args.states(args.further_width())));
    f.c_n = results[1].data_ptr();
  }
  CallScratch scratch(input);
  engine_for(input.device().type()).forward(f, [&](int64_t bytes) { return scratch.take(bytes); });
  results.push_back(saved);
  return results;
}

std::vector<Tensor> step_backward(int64_t stack, Gradient grad_h, Gradient grad_c, Tensor input,
                                  std::optional<Tensor> h0, std::optional<Tensor> c0, std::vector<Tensor> weights,
                                  Tensor saved, int64_t wanted) {
  const StackCode step = step_of(stack);
  BackwardCall call(step.cell, step.bias, false, input, weights);
  call.args.take_step(input);
  call.args.read_weights(weights);
  call.args.read_states(h0, c0);
  call.read(std::nullopt, grad_h, grad_c, std::nullopt, saved);
  const Engine& engine = engine_for(input.device().type());
  call.has_placeholders = false;
  call.write(wanted, !engine.may_skip_initial_gradients || h0 || c0);
  call.run();
  std::vector<Tensor> results;
  const auto add = [&](bool asked, Tensor& grad) {
    if (asked) results.push_back(std::move(grad));
  };
  add(wanted & kInput, call.grad_input);
  add(h0.has_value(), call.grad_h0);
  add(c0.has_value(), call.grad_c0);
  for (Tensor& grad : call.grad_weights) add(grad.defined(), grad);
  return results;
}

}  // namespace fused_rnn
