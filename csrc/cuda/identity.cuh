#pragma once
#include <cstddef>
#include <cstdint>

namespace fused_rnn {
namespace {

// Any grid covers any size: each thread strides over the whole input. The arrays do not overlap.
__global__ void identity_kernel(const std::byte* __restrict__ input, std::byte* __restrict__ output, int64_t bytes) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < bytes; i += stride) output[i] = input[i];
}

}  // namespace
}  // namespace fused_rnn
