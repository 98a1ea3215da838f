// Packed weights as a tensor: a header that identifies the weights, then the engine's data.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <span>

#include "core/engine.h"

namespace fused_rnn {

// Whether this tensor may be packed weights; weights of layers are never bytes.
bool is_packed(const torch::stable::Tensor& weight);

// Fills in a layer's cell, dtype, sizes, format and `packed` from packed weights, without the weights themselves. Of
// those only hr is set, if there is a projection, to an address that is not theirs. Throws unless this engine packed
// them.
void read_packed(const void* packed, int64_t bytes, Layer& layer, const Engine& engine);
void read_packed(const torch::stable::Tensor& packed, Layer& layer, const Engine& engine);

// Sets Layer::packed and format. Throws unless this process and engine packed these weights into `packed`.
void take_packed(Layer& layer, const torch::stable::Tensor& packed, bool bias,
                 std::span<const torch::stable::Tensor> weights, const Engine& engine);

}  // namespace fused_rnn
