// The CUDA engine: every call runs on its tensors' device, on torch's current stream there.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../engine.h"
#include "../fail.h"
#include "../ops.h"
#include "identity.h"
#include "stepwise.h"
#include "stream.h"

namespace fused_rnn {
namespace {

using torch::headeronly::DeviceType;
using torch::stable::accelerator::DeviceGuard;

void forward(const Forward& f, const Scratch& scratch) {
  const DeviceGuard guard(f.device);
  stepwise_forward(f, {{DeviceType::CUDA, static_cast<int8_t>(f.device)}, current_cuda_stream(f.device), scratch});
}

void backward(const Backward& g, const Scratch& scratch) {
  const DeviceGuard guard(g.device);
  stepwise_backward(g, {{DeviceType::CUDA, static_cast<int8_t>(g.device)}, current_cuda_stream(g.device), scratch});
}

[[noreturn]] void no_packing() { fail("fused_rnn: weights are packed on the CPU only, not on CUDA"); }
int64_t packed_bytes(const Layer&) { no_packing(); }
void pack(const Layer&, void*) { no_packing(); }
int64_t packed_format() { no_packing(); }

const Engine kEngine = {&forward, &backward, &packed_bytes, &pack, &packed_format};
const bool kAdded = (add_engine(DeviceType::CUDA, kEngine), true);

Tensor cuda_identity(const Tensor& input) {
  const int32_t device = input.get_device_index();
  const DeviceGuard guard(device);
  const Tensor source = torch::stable::contiguous(input);
  const Tensor output = torch::stable::empty_like(source);
  const int64_t bytes = source.numel() * static_cast<int64_t>(source.element_size());
  launch_identity(source.const_data_ptr(), output.mutable_data_ptr(), bytes, current_cuda_stream(device));
  return output;
}

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CUDA, m) {
  m.impl("layer_forward", TORCH_BOX(&fused_rnn::layer_forward));
  m.impl("infer", TORCH_BOX(&fused_rnn::infer));
  m.impl("pack_weights", TORCH_BOX(&fused_rnn::pack_weights));
  m.impl("layer_backward", TORCH_BOX(&fused_rnn::layer_backward));
  m.impl("layer_tangent", TORCH_BOX(&fused_rnn::layer_tangent));
  m.impl("layer_trace", TORCH_BOX(&fused_rnn::layer_trace));
  m.impl("layer_backward_tangent", TORCH_BOX(&fused_rnn::layer_backward_tangent));
  m.impl("cuda_identity", TORCH_BOX(&fused_rnn::cuda_identity));
}
