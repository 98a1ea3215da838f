// The only place that launches kernels, so that every launch is checked.
#pragma once
#include <cstring>

#include "core/fail.h"
#include "cuda/device/device.h"

namespace fused_rnn::cuda {

struct Launch {
  dim3 grid, block;
  void* stream;  // a cudaStream_t
  size_t shared_bytes = 0;
  bool cooperative = false;  // all blocks are resident at the same time, or the launch fails
  unsigned cluster = 1;      // blocks in a cluster, which the grid's x is a multiple of
};

inline void check_cuda(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next one to ask would be told of this error
  fail("fused_rnn: ", doing, ": ", cudaGetErrorString(error));
}

// Blocks that wait for each other must all be resident, or they wait for ever. The plan counts on one to a
// multiprocessor; here it is asked what this kernel really gets.
template <class Kernel>
void check_residence(const Launch& how, Kernel kernel) {
  int device = 0, multiprocessors = 0, each = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "asking for its size");
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, int(how.block.x), how.shared_bytes),
             "asking how many blocks are resident");
  const int64_t resident = int64_t{each} * multiprocessors;
  FUSED_RNN_CHECK(how.grid.x <= resident, "fused_rnn: a kernel of ", how.grid.x,
                  " blocks that wait for each other, of which this GPU holds ", resident, " at a time");
}

// Nothing happens for an empty grid, which CUDA would refuse.
template <class... Params, class... Args>
void launch(const Launch& how, void (*kernel)(Params...), const Args&... args) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  constexpr size_t kAlwaysThere = 48 * 1024;
  constexpr unsigned kPortableCluster = 8;
  if (how.shared_bytes > kAlwaysThere)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(how.shared_bytes)),
               "asking for shared memory");
  if (how.cluster > kPortableCluster)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
               "asking for a large cluster");
  if (how.cooperative) check_residence(how, kernel);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = attributes;
  if (how.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (how.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {how.cluster, 1, 1};
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, Params(args)...), "launching a kernel");
}

// Capturable, and in order with the stream's kernels.
inline void fill_bytes(void* to, int value, size_t bytes, void* stream) {
  check_cuda(cudaMemsetAsync(to, value, bytes, static_cast<cudaStream_t>(stream)), "filling memory");
}

}  // namespace fused_rnn::cuda
