// Packed weights as a tensor: a header that identifies the weights, then the engine's data.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <span>

#include "core/engine.h"

namespace fused_rnn {

// Sets Layer::packed and format. Throws unless this process and engine packed these weights into `packed`.
void take_packed(Layer& layer, const torch::stable::Tensor& packed, bool bias,
                 std::span<const torch::stable::Tensor> weights, const Engine& engine);

}  // namespace fused_rnn
