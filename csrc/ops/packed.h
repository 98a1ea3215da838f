// Packed weights as a tensor: a header that identifies the weights, then the engine's data.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <span>

#include "core/engine.h"

namespace fused_rnn {

// The value of Layer::packed. Throws unless this process and engine packed these weights into `packed`.
const void* unpacked(const torch::stable::Tensor& packed, const Layer& layer, bool bias,
                     std::span<const torch::stable::Tensor> weights, const Engine& engine);

}  // namespace fused_rnn
