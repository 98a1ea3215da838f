// The list of operators, the same for every device.
#pragma once
#include <torch/csrc/stable/library.h>

#include "ops/ops.h"

#define FUSED_RNN_IMPLEMENT_OPERATORS(m)                                           \
  m.impl("layer_forward", TORCH_BOX(&fused_rnn::layer_forward));                   \
  m.impl("infer", TORCH_BOX(&fused_rnn::infer));                                   \
  m.impl("infer_layer", TORCH_BOX(&fused_rnn::infer_layer));                       \
  m.impl("step_forward", TORCH_BOX(&fused_rnn::step_forward));                     \
  m.impl("step_backward", TORCH_BOX(&fused_rnn::step_backward));                   \
  m.impl("pack_weights", TORCH_BOX(&fused_rnn::pack_weights));                     \
  m.impl("layer_backward", TORCH_BOX(&fused_rnn::layer_backward));                 \
  m.impl("layer_tangent", TORCH_BOX(&fused_rnn::layer_tangent));                   \
  m.impl("layer_trace", TORCH_BOX(&fused_rnn::layer_trace));                       \
  m.impl("layer_backward_tangent", TORCH_BOX(&fused_rnn::layer_backward_tangent)); \
  m.impl("normed_forward", TORCH_BOX(&fused_rnn::normed_forward));                 \
  m.impl("normed_backward", TORCH_BOX(&fused_rnn::normed_backward))
