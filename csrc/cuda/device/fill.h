// Writes to GPU memory. Streams are cudaStream_t.
#pragma once
#include <cstdint>

namespace fused_rnn::cuda {

// Sets every byte.
void launch_fill(void* to, int value, int64_t bytes, void* stream);
// Copies from host memory by kernel parameters: a captured memcpy would read `from` again at every replay of the graph.
void launch_store_numbers(int64_t* to, const int64_t* from, int64_t count, void* stream);

}  // namespace fused_rnn::cuda
