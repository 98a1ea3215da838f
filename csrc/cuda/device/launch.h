// Checked kernel launches; nothing else launches kernels.
#pragma once
#include <cstring>

#include "core/fail.h"
#include "cuda/device/device.h"

namespace fused_rnn::cuda {

struct Launch {
  dim3 grid, block;
  void* stream;  // a cudaStream_t
  size_t shared_bytes = 0;
  bool cooperative = false;  // all blocks must be resident at the same time
  unsigned cluster = 1;      // blocks of a cluster; divides grid.x
};

inline void check_cuda(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error
  fail("fused_rnn: ", doing, ": ", cudaGetErrorString(error));
}

// Blocks that wait for each other must all be resident, or they deadlock. The plan assumes one block a multiprocessor;
// this checks the kernel's actual occupancy.
template <class Kernel>
void check_residence(const Launch& how, Kernel kernel) {
  int device = 0, multiprocessors = 0, each = 0;
  check_cuda(cudaGetDevice(&device), "querying the device");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "querying the number of multiprocessors");
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, int(how.block.x), how.shared_bytes),
             "querying a kernel's occupancy");
  const int64_t resident = int64_t{each} * multiprocessors;
  FUSED_RNN_CHECK(how.grid.x <= resident, "fused_rnn: a cooperative kernel has ", how.grid.x,
                  " blocks, but this GPU can only hold ", resident, " of them at a time");
}

// Does nothing for an empty grid, which CUDA would reject.
template <class... Params, class... Args>
void launch(const Launch& how, void (*kernel)(Params...), const Args&... args) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return;
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  constexpr unsigned kPortableCluster = 8;
  if (how.shared_bytes > kDefaultSharedBytes)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(how.shared_bytes)),
               "setting a kernel's shared memory size");
  if (how.cluster > kPortableCluster)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
               "allowing a non-portable cluster size");
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

// In stream order; can be captured in a graph.
inline void fill_bytes(void* to, int value, size_t bytes, void* stream) {
  check_cuda(cudaMemsetAsync(to, value, bytes, static_cast<cudaStream_t>(stream)), "filling memory");
}

}  // namespace fused_rnn::cuda
