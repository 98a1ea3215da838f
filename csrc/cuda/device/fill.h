// Fills memory of the GPU. Streams are cudaStream_t.
#pragma once
#include <cstdint>

namespace fused_rnn::cuda {

// Sets every byte.
void launch_fill(void* to, int value, int64_t bytes, void* stream);
// Copies numbers of the host, as kernel parameters: a graph that captured a copy would read memory that is gone.
void launch_store_numbers(int64_t* to, const int64_t* from, int64_t count, void* stream);

}  // namespace fused_rnn::cuda
