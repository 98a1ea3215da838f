// The only place that launches kernels, so that every launch is checked. For nvcc.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

namespace fused_rnn {

// Returns null, or what CUDA says is wrong. stream is a cudaStream_t.
template <class... Params, class... Args>
const char* launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, void* stream, Args... args) {
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fused_rnn
