// The operators of torch.ops.fused_rnn, the same for every device.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

// The operators' namespace in torch.ops. The tests' software GPU builds them again, under another one.
#ifndef FUSED_RNN_LIBRARY
#define FUSED_RNN_LIBRARY fused_rnn
#endif
#define FUSED_RNN_DEFINE_OPERATORS(library, m) STABLE_TORCH_LIBRARY(library, m)

namespace fused_rnn {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(
    int64_t cell, bool bias, bool bidirectional, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
    std::vector<Tensor> weights, std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
    std::optional<Tensor> reset_mask, bool save, bool cells, std::optional<double> grad_clip,
    std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h,
    std::optional<double> zoneout_c, std::optional<int64_t> checkpoint);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_tangent(
    int64_t cell, bool bias, bool bidirectional, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
    std::vector<Tensor> weights, std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
    std::optional<Tensor> reset_mask, Tensor saved, std::optional<Tensor> x, std::optional<Tensor> r,
    std::optional<Tensor> h, bool cells, std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask,
    std::optional<double> zoneout_h, std::optional<double> zoneout_c);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> normed_forward(
    int64_t cell, bool bias, bool bidirectional, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
    std::vector<Tensor> weights, std::vector<Tensor> norms, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, bool save, bool cells,
    std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h,
    std::optional<double> zoneout_c);

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>> normed_backward(
    int64_t cell, bool bias, bool bidirectional, std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n,
    std::optional<Tensor> grad_c_n, std::optional<Tensor> grad_cells, Tensor input, std::optional<Tensor> h0,
    std::optional<Tensor> c0, std::vector<Tensor> weights, std::vector<Tensor> norms, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved, int64_t wanted,
    std::optional<double> grad_clip, std::optional<Tensor> h_factor, std::optional<Tensor> zoneout_mask,
    std::optional<double> zoneout_h, std::optional<double> zoneout_c);

std::vector<Tensor> infer(int64_t stack, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                          std::vector<Tensor> weights, std::optional<std::vector<Tensor>> packed,
                          std::optional<Tensor> lengths, std::optional<Tensor> batch_sizes,
                          std::optional<Tensor> reset_mask, bool cells, std::optional<int64_t> own_cell);

std::vector<Tensor> infer_layer(int64_t stack, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                                Tensor weight_ih, std::optional<Tensor> weight_hh, std::optional<Tensor> bias_ih,
                                std::optional<Tensor> bias_hh);

std::vector<Tensor> step_forward(int64_t stack, Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                                 std::vector<Tensor> weights);

std::vector<Tensor> step_backward(int64_t stack, std::optional<Tensor> grad_h, std::optional<Tensor> grad_c,
                                  Tensor input, std::optional<Tensor> h0, std::optional<Tensor> c0,
                                  std::vector<Tensor> weights, Tensor saved, int64_t wanted);

Tensor zoneout_mask(Tensor seed, int64_t rows, int64_t states, int64_t hidden, int64_t h_bound, int64_t c_bound);

Tensor pack_weights(int64_t cell, bool bias, bool bidirectional, std::vector<Tensor> weights, int64_t format);

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    int64_t cell, bool bias, bool bidirectional, std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n,
    std::optional<Tensor> grad_c_n, std::optional<Tensor> grad_cells, Tensor input, std::optional<Tensor> h0,
    std::optional<Tensor> c0, std::vector<Tensor> weights, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved, int64_t wanted,
    int64_t weight_groups, bool norms, std::optional<double> grad_clip, std::optional<Tensor> h_factor,
    std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h, std::optional<double> zoneout_c,
    std::optional<int64_t> checkpoint);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_trace(
    int64_t cell, bool bias, bool bidirectional, std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n,
    std::optional<Tensor> grad_c_n, std::optional<Tensor> grad_cells, Tensor input, std::optional<Tensor> h0,
    std::optional<Tensor> c0, std::vector<Tensor> weights, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved, std::optional<Tensor> h_factor,
    std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h, std::optional<double> zoneout_c);

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward_tangent(
    int64_t cell, bool bias, bool bidirectional, std::optional<Tensor> grad_output, std::optional<Tensor> grad_h_n,
    std::optional<Tensor> grad_c_n, std::optional<Tensor> grad_cells, Tensor input, std::optional<Tensor> h0,
    std::optional<Tensor> c0, std::vector<Tensor> weights, std::optional<Tensor> lengths,
    std::optional<Tensor> batch_sizes, std::optional<Tensor> reset_mask, Tensor saved, Tensor saved_tangent,
    Tensor states, std::optional<Tensor> h, std::optional<Tensor> wide, int64_t wanted, std::optional<Tensor> h_factor,
    std::optional<Tensor> zoneout_mask, std::optional<double> zoneout_h, std::optional<double> zoneout_c);

}  // namespace fused_rnn
