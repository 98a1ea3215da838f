// Both passes of the CUDA engine: by the persistent kernel where the plan has one, otherwise stepwise, with one product
// and one kernel a step. They neither synchronize nor copy between host and device, so a CUDA graph can capture them;
// every sum has a fixed order, so results are deterministic.
#pragma once
#include "cuda/host/product.h"

namespace fused_rnn::cuda {

void run_forward(const Forward&, const Machine&);
void run_backward(const Backward&, const Machine&);

// Bytes of W_ih x that are computed ahead, for a chunk of steps. Tests set it low; returns the previous value.
constexpr int64_t kAheadBytes = int64_t{256} << 20;
int64_t set_ahead_bytes(int64_t bytes);

}  // namespace fused_rnn::cuda
