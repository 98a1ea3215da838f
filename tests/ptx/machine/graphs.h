// CUDA graphs: what was asked of a stream while it was captured, kept and done again.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

namespace ptx {

inline int64_t products = 0;  // that torch was asked for

// Whether the stream is being captured, and so keeps the work.
bool capture(cudaStream_t stream, std::function<cudaError_t()> work);
// Whether a stream is being captured by this process, and this thread has not said that it may do anything meanwhile:
// then CUDA refuses what would wait or allocate.
bool forbids_waiting();
// Memory that is taken while a graph is captured is the graph's: it frees what others have released when it goes.
void note_allocation(void* memory);
bool keeps(void* memory);

}  // namespace ptx
