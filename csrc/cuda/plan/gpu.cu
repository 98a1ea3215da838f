#include "cuda/device/launch.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {

Gpu gpu_of(int32_t device) {
  const auto ask = [&](cudaDeviceAttr what) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, what, device), "querying the GPU");
    return value;
  };
  const int capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  return {capability, ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          capability == 90 || capability == 100 ? 16 : 8};
}

}  // namespace fused_rnn::cuda
