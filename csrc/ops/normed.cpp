// Layers with layer norm. `norms`, of each direction: gain_ih, gain_hh and, of a cell with an output gate, gain_c, and
// bias_c if there are biases.
#include <torch/csrc/stable/library.h>

#include "ops/backward_call.h"
#include "ops/forward_call.h"
#include "ops/ops.h"

namespace fused_rnn {
namespace {

// After the other arguments.
void read_norms(Layer& layer, Arguments& args, std::span<const Tensor> norms) {
  const bool has_output_gate = args.cell.output_gate, has_bias_c = has_output_gate && args.has_bias;
  const int64_t GH = args.cell.gates * layer.hidden, expected = 1 + args.cell.recurrent + has_output_gate + has_bias_c;
  FUSED_RNN_CHECK(args.members.empty() && !args.has_projection,
                  "fused_rnn: layer norm goes neither with members nor with a projection (proj_size)");
  FUSED_RNN_CHECK(static_cast<int64_t>(norms.size()) == expected * layer.directions, "fused_rnn: norms must hold ",
                  expected, " tensors for each of ", layer.directions, " directions of this cell, got ", norms.size(),
                  " in all");
  const Tensor* next = norms.data();
  for (int64_t d = 0; d < layer.directions; ++d) {
    const auto take = [&](bool exists, const char* name, int64_t size) {
      return exists ? args.hold(args.checked(*next++, name, {size})) : nullptr;
    };
    Weights& w = layer.weights[d];
    w.gain_ih = take(true, "gain_ih", GH);
    w.gain_hh = take(args.cell.recurrent, "gain_hh", GH);
    w.gain_c = take(has_output_gate, "gain_c", layer.hidden);
    w.bias_c = take(has_bias_c, "bias_c", layer.hidden);
  }
  layer.saved_width = saved_width(layer, args.cell);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> normed_forward(
    int64_t cell, bool bias, bool bidirectional, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
    std::vector<Tensor> weights, std::vector<Tensor> norms, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, bool save, bool cells,
    std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h,
    std::optional<double> zoneout_c) {
  Forward f = {};
  Arguments args(f, cell, bias, bidirectional, input, weights);
  args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  args.read_options({h_factor, zoneout_mask, zoneout_h, zoneout_c});
  read_norms(f, args, norms);
  return run_forward(f, args, like_of(input, weights), save, cells);
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>> normed_backward(
    int64_t cell, bool bias, bool bidirectional, Gradient grad_output, Gradient grad_h_n, Gradient grad_c_n,
    Gradient grad_cells, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0, std::vector<Tensor> weights,
    std::vector<Tensor> norms, std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
    std::optional<Tensor> reset_mask, Tensor saved, int64_t wanted, std::optional<double> grad_clip,
    std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h,
    std::optional<double> zoneout_c) {
  BackwardCall call(cell, bias, bidirectional, input, weights);
  Backward& g = call.g;
  call.args.read(input, h0, c0, weights, lengths, batch_sizes, reset_mask);
  call.args.read_options({h_factor, zoneout_mask, zoneout_h, zoneout_c});
  read_norms(g, call.args, norms);
  call.read(grad_output, grad_h_n, grad_c_n, grad_cells, saved);
  g.grad_clip = clip_of(grad_clip);
  call.write(wanted & ~(kBiasIh | kBiasHh));  // these are among those of the norms
  std::vector<Tensor> grad_norms;
  for (int64_t d = 0; d < g.directions; ++d) {
    grad_norms.push_back(new_tensor(call.like, {norm_sums(g, call.args.cell).count, g.hidden}));
    g.grads[d].norms = grad_norms[d].data_ptr();
  }
  call.run();
  return {call.grad_input, call.grad_h0, call.grad_c0, call.grad_weights, grad_norms};
}

}  // namespace fused_rnn
