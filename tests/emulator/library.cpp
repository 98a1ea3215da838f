// The CUDA engine with its kernels on the emulator and its memory on the CPU: the operators of fused_rnn once more, as
// torch.ops.fused_rnn_emulated. It stands for csrc/cuda/registration.cpp; everything else is the library's own source.
#include <torch/csrc/stable/library.h>

#include "cuda/stepwise.h"
#include "emulator.h"
#include "memory.h"
#include "ops.h"

namespace fused_rnn {
namespace {

using torch::headeronly::DeviceType;

void forward(const Forward& f, const Scratch& scratch) { stepwise_forward(f, {{DeviceType::CPU}, nullptr, scratch}); }
void backward(const Backward& g, const Scratch& scratch) {
  stepwise_backward(g, {{DeviceType::CPU}, nullptr, scratch});
}

const Engine kEngine = {&forward, &backward, nullptr, nullptr, nullptr};
const bool kAdded = (add_engine(DeviceType::CPU, kEngine), true);

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_emulated, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&fused_rnn::layer_forward));
  m.impl("infer", TORCH_BOX(&fused_rnn::infer));
  m.impl("layer_backward", TORCH_BOX(&fused_rnn::layer_backward));
  m.impl("layer_tangent", TORCH_BOX(&fused_rnn::layer_tangent));
  m.impl("layer_trace", TORCH_BOX(&fused_rnn::layer_trace));
  m.impl("layer_backward_tangent", TORCH_BOX(&fused_rnn::layer_backward_tangent));
}

#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT void emulator_schedule(unsigned seed) { emulator::schedule = {seed}; }
EXPORT void emulator_fill_memory(bool fill) { fused_rnn::fill_memory(fill); }
