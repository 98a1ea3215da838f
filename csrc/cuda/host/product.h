// Matrix products by torch, on the current stream and in the precision that torch is set to (TF32).
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "core/engine.h"
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {

// Where the engine runs: a CUDA device and stream, or the CPU in tests that execute the PTX in software.
struct Machine {
  torch::stable::Device device;
  void* stream;
  const Scratch& scratch;
};

// A batch of matrices; strides in elements.
struct Matrices {
  const void* data;
  int64_t batch_stride, row_stride, column_stride;

  Matrices transposed() const { return {data, batch_stride, column_stride, row_stride}; }
};

// result[i] = a[i] * b[i], i < batch; a [rows, depth], b [depth, columns], in the layer's dtype. The result's rows are
// contiguous. Made once and run at every step, with the same addresses.
class Product {
 public:
  struct Sizes {
    int64_t batch, rows, depth, columns;
  };
  struct Result {
    void* data;
    Format format;
    int64_t batch_stride, row_stride;
  };

  Product(const Machine& machine, Dtype dtype, const Sizes& sizes, const Matrices& a, const Matrices& b,
          const Result& result);
  void run();

 private:
  Sizes sizes_;
  torch::stable::Tensor a_, b_, result_;
};

}  // namespace fused_rnn::cuda
