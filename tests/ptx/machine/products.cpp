// torch's products, which the host computes at once here, become part of a graph too. The linker puts these functions
// before the engine's own (building.py).
#include "cuda/host/product.h"

#include "graphs.h"

using fused_rnn::cuda::Product;

extern "C" {

// fused_rnn::cuda::Product::run()
void __real__ZN9fused_rnn4cuda7Product3runEv(Product* product);

void __wrap__ZN9fused_rnn4cuda7Product3runEv(Product* product) {
  const auto work = [copy = *product]() mutable {
    __real__ZN9fused_rnn4cuda7Product3runEv(&copy);
    return cudaSuccess;
  };
  if (!ptx::capture(nullptr, work)) __real__ZN9fused_rnn4cuda7Product3runEv(product);
  ++ptx::products;
}
}
