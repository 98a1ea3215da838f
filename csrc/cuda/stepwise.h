// The engine that runs everything: a product and a kernel for every step of the loop over time. Whatever is faster is
// checked against it. It waits for nothing and copies nothing from or to the host, so a CUDA graph can capture it;
// every sum has one order, so results are the same every time.
#pragma once
#include "product.h"

namespace fused_rnn {

void stepwise_forward(const Forward&, const Machine&);
void stepwise_backward(const Backward&, const Machine&);

}  // namespace fused_rnn
