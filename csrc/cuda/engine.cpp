// The CUDA engine: every call runs on its tensors' device, on torch's current stream there.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "core/engine.h"
#include "core/fail.h"
#include "cuda/host/passes.h"
#include "cuda/host/stream.h"

namespace fused_rnn::cuda {
namespace {

using torch::headeronly::DeviceType;
using torch::stable::accelerator::DeviceGuard;

void forward(const Forward& f, const Scratch& scratch) {
  const DeviceGuard guard(f.device);
  run_forward(f, {{DeviceType::CUDA, static_cast<int8_t>(f.device)}, current_cuda_stream(f.device), scratch});
}

void backward(const Backward& g, const Scratch& scratch) {
  const DeviceGuard guard(g.device);
  run_backward(g, {{DeviceType::CUDA, static_cast<int8_t>(g.device)}, current_cuda_stream(g.device), scratch});
}

[[noreturn]] void no_packing() { fail("fused_rnn: weights are packed on the CPU only, not on CUDA"); }
int64_t packed_bytes(const Layer&) { no_packing(); }
void pack(const Layer&, void*) { no_packing(); }
int64_t packed_format() { no_packing(); }

const Engine kEngine = {&forward, &backward, &packed_bytes, &pack, &packed_format};
const bool kAdded = (add_engine(DeviceType::CUDA, kEngine), true);

}  // namespace
}  // namespace fused_rnn::cuda
