// fused_rnn's CUDA engine, with its tensors in the host's memory and its kernels on the machine: the operators of
// torch.ops.fused_rnn_emulated.
#include <torch/csrc/stable/ops.h>

#include <memory>
#include <vector>

#include "allocations.h"
#include "cuda/host/passes.h"
#include "ops/register.h"

namespace fused_rnn {
namespace {

using torch::headeronly::DeviceType;

// Scratch memory of one call, each piece between fences of its own.
class FencedScratch {
 public:
  void* take(int64_t bytes) {
    held_.emplace_back(ptx::allocate_fenced(static_cast<size_t>(bytes)));
    return held_.back().get();
  }

 private:
  struct Free {
    void operator()(void* memory) const { ptx::free_fenced(memory); }
  };
  std::vector<std::unique_ptr<void, Free>> held_;
};

constexpr int32_t kDevice = 0;  // the CPU of torch has no number

void forward(const Forward& f, const Scratch&) {
  FencedScratch held;
  const Scratch scratch = [&](int64_t bytes) { return held.take(bytes); };
  Forward on_machine = f;
  on_machine.device = kDevice;
  cuda::run_forward(on_machine, {{DeviceType::CPU}, nullptr, scratch});
}
void backward(const Backward& g, const Scratch&) {
  FencedScratch held;
  const Scratch scratch = [&](int64_t bytes) { return held.take(bytes); };
  Backward on_machine = g;
  on_machine.device = kDevice;
  cuda::run_backward(on_machine, {{DeviceType::CPU}, nullptr, scratch});
}

// Weights are packed on the CPU only.
const Engine kEngine = {&forward, &backward, nullptr, nullptr, nullptr};
const bool kAdded = (add_engine(DeviceType::CPU, kEngine), true);

}  // namespace
}  // namespace fused_rnn

STABLE_TORCH_LIBRARY_IMPL(FUSED_RNN_LIBRARY, CPU, m) { FUSED_RNN_IMPLEMENT_OPERATORS(m); }
