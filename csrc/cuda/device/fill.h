// Memory of the GPU with something in it. Streams are cudaStream_t.
#pragma once
#include <cstdint>

namespace fused_rnn::cuda {

// Every byte.
void launch_fill(void* to, int value, int64_t bytes, void* stream);
// Numbers of the host.
void launch_store_numbers(int64_t* to, const int64_t* from, int64_t count, void* stream);

}  // namespace fused_rnn::cuda
