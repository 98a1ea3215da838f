// CUDA graphs: what was asked of a stream while it was captured, kept and done again.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>

namespace ptx {

// Whether the stream is being captured, and so keeps the work.
bool capture(cudaStream_t stream, std::function<cudaError_t()> work);

}  // namespace ptx
