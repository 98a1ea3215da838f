#pragma once
#include <cstdint>

namespace fused_rnn::cuda {

// torch's current stream (a cudaStream_t) on this device. Throws if torch has no CUDA; never falls back to stream 0.
void* current_cuda_stream(int32_t device);

}  // namespace fused_rnn::cuda
