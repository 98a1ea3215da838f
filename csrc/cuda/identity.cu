#include "cuda/identity.h"

#include <algorithm>

#include "cuda/identity.cuh"
#include "cuda/launch.h"

namespace fused_rnn {

const char* launch_identity(const void* input, void* output, int64_t bytes, void* stream) {
  constexpr int64_t kThreads = 256, kMostBlocks = 1024;  // enough to fill any GPU, the threads stride over the rest
  if (bytes == 0) return nullptr;                        // a grid of no blocks is an error to CUDA
  const int64_t blocks = std::min((bytes + kThreads - 1) / kThreads, kMostBlocks);
  return launch(identity_kernel, dim3(blocks), dim3(kThreads), 0, stream, static_cast<const std::byte*>(input),
                static_cast<std::byte*>(output), bytes);
}

}  // namespace fused_rnn
