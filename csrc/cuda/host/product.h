// Products of matrices, which are torch's: on the device, in the precision that torch is set to (TF32), on the current
// stream.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "core/engine.h"
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {

// Where the engine computes: a CUDA device and its stream, or, in tests that execute its PTX, the CPU.
struct Machine {
  torch::stable::Device device;
  void* stream;
  const Scratch& scratch;
};

// An array as a batch of matrices; distances in numbers.
struct Matrices {
  const void* data;
  int64_t batch_stride, row_stride, column_stride;

  Matrices transposed() const { return {data, batch_stride, column_stride, row_stride}; }
};

// result[i] = a[i] * b[i], i < batch; a [rows, depth], b [depth, columns], in the layer's dtype. The result's numbers
// of a row lie side by side. Made once and run every step: nothing in it but the numbers may change.
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
