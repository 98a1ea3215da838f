// Packed weights as a tensor: a header that says whose they are, then what the engine made of them.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <span>

#include "core/engine.h"

namespace fused_rnn {

// What Layer::packed is to point to; throws unless `packed` was made here, by this engine, from these very weights.
const void* unpacked(const torch::stable::Tensor& packed, const Layer& layer, bool bias,
                     std::span<const torch::stable::Tensor> weights, const Engine& engine);

}  // namespace fused_rnn
