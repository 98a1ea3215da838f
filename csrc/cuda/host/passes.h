// The engine that runs everything: a product and a kernel for every step of the loop over time. Whatever is faster is
// checked against it. It waits for nothing and copies nothing from or to the host, so a CUDA graph can capture it;
// every sum has one order, so results are the same every time.
#pragma once
#include "cuda/host/product.h"

namespace fused_rnn::cuda {

void stepwise_forward(const Forward&, const Machine&);
void stepwise_backward(const Backward&, const Machine&);

// How many bytes of W_ih x are computed ahead of a run of steps: a long sequence has several runs. For tests, which set
// it low; returns what it was before.
constexpr int64_t kAheadBytes = int64_t{256} << 20;
int64_t set_ahead_bytes(int64_t bytes);

}  // namespace fused_rnn::cuda
