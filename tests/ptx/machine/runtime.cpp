// The part of the CUDA runtime that this project's host code calls, in front of the machine: a GPU of the size of an
// H200. It checks what a real one would refuse a launch for.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "allocations.h"
#include "graphs.h"
#include "grid.h"
#include "library.h"
#include "limits.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// What the host asks for a kernel, by the address of its stub.
struct Function {
  std::string name;
  ptx::Allowed allowed = {};
};
std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> all;
  return all;
}

std::string last_error;
std::recursive_mutex mutex;  // launches come one after the other, as on one stream

cudaError_t refuse(cudaError_t error, const std::string& why) {
  last_error = why;
  return error;
}

cudaError_t run(ptx::Loaded& loaded, const ptx::Launch& how) {
  const std::lock_guard lock(mutex);
  try {
    ptx::run(*loaded.module, *loaded.kernel, how);
    return cudaSuccess;
  } catch (const std::exception& e) {
    return refuse(cudaErrorLaunchFailure, e.what());
  }
}

cudaError_t launch(const void* function, ptx::Launch how, void** arguments, cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  const auto found = functions().find(function);
  if (found == functions().end()) return refuse(cudaErrorInvalidDeviceFunction, "not a kernel");
  const Function& f = found->second;
  try {
    ptx::Loaded& loaded = ptx::library().kernel(f.name);
    const ptx::Kernel& kernel = *loaded.kernel;
    if (const ptx::Obstacle found = ptx::obstacle(kernel, how, f.allowed); !found.reason.empty())
      return refuse(found.too_many_blocks ? cudaErrorCooperativeLaunchTooLarge : cudaErrorInvalidConfiguration,
                    found.reason + ", of " + f.name);
    how.parameters.resize(kernel.parameter_bytes);
    for (size_t i = 0; i < kernel.parameters.size(); ++i)
      std::memcpy(how.parameters.data() + kernel.parameters[i].offset, arguments[i], kernel.parameters[i].size);
    return ptx::capture(stream, [&loaded, how] { return run(loaded, how); }) ? cudaSuccess : run(loaded, how);
  } catch (const std::exception& e) {
    return refuse(cudaErrorLaunchFailure, e.what());
  }
}

const ptx::Kernel& kernel_of(const void* function) {
  const std::lock_guard lock(mutex);
  return *ptx::library().kernel(functions().at(function).name).kernel;
}

ptx::Dim dim(dim3 d) { return {d.x, d.y, d.z}; }

}  // namespace

// ---- what nvcc's host code calls ------------------------------------------------------------------------------------
// The machine code in a fat binary is not looked at: the PTX that it was made from has been read from its file.

EXPORT void** __cudaRegisterFatBinary(void* wrapper) { return static_cast<void**>(wrapper); }
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                                   int*) {
  functions()[host] = {name};
}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                                      cudaStream_t stream) {
  return launch(kernel, {dim(grid), dim(block), static_cast<uint32_t>(shared), 1, false, {}}, arguments, stream);
}
EXPORT unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return 1; }

// ---- launches and what a kernel may have ----------------------------------------------------------------------------

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  ptx::Launch how = {
      dim(config->gridDim), dim(config->blockDim), static_cast<uint32_t>(config->dynamicSmemBytes), 1, false, {}};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& a = config->attrs[i];
    if (a.id == cudaLaunchAttributeCooperative)
      how.cooperative = a.val.cooperative;
    else if (a.id == cudaLaunchAttributeClusterDimension)
      how.cluster = a.val.clusterDim.x * a.val.clusterDim.y * a.val.clusterDim.z;
    else
      return refuse(cudaErrorNotSupported, "a launch attribute that is not known here");
  }
  return launch(function, std::move(how), arguments, config->stream);
}
EXPORT cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute what, int value) {
  Function& f = functions().at(function);
  if (what == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    f.allowed.large_cluster = value;
  } else if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return refuse(cudaErrorNotSupported, "a function attribute that is not known here");
  } else if (value > ptx::kMostShared) {
    return refuse(cudaErrorInvalidValue, "more shared memory than a block may have");
  } else {
    f.allowed.dynamic_shared = static_cast<size_t>(value);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function,
                                                                          int threads, size_t shared, unsigned) {
  const ptx::Kernel& kernel = kernel_of(function);
  *blocks = ptx::blocks_of_multiprocessor(threads, shared + kernel.static_shared_bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                                 size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
// As if the blocks of a cluster could lie on any multiprocessors.
EXPORT cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function,
                                                  const cudaLaunchConfig_t* config) {
  int blocks = 0;
  const int threads = static_cast<int>(dim(config->blockDim).count());
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, config->dynamicSmemBytes);
  unsigned size = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) size = config->attrs[i].val.clusterDim.x;
  *clusters = blocks * ptx::kMultiprocessors / static_cast<int>(size);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const ptx::Kernel& kernel = kernel_of(function);
  *attributes = {};
  attributes->numRegs = ptx::kMostRegisters;
  attributes->maxThreadsPerBlock = static_cast<int>(kernel.most_threads);
  attributes->sharedSizeBytes = kernel.static_shared_bytes;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  const std::pair<cudaDeviceAttr, int> all[] = {{cudaDevAttrComputeCapabilityMajor, 9},
                                                {cudaDevAttrComputeCapabilityMinor, 0},
                                                {cudaDevAttrMultiProcessorCount, ptx::kMultiprocessors},
                                                {cudaDevAttrMaxSharedMemoryPerBlockOptin, ptx::kMostShared}};
  for (const auto& [known, number] : all)
    if (known == what) return *value = number, cudaSuccess;
  return refuse(cudaErrorInvalidValue, "a device attribute that is not known here");
}
EXPORT cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORT const char* cudaGetErrorString(cudaError_t) { return last_error.c_str(); }

// ---- memory, which is the host's; streams and events: everything is over when its call returns ----------------------

cudaError_t refuse_in_capture() {
  return refuse(cudaErrorStreamCaptureUnsupported, "a call that waits or allocates, while a graph is captured");
}

EXPORT cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (ptx::forbids_waiting()) return refuse_in_capture();
  return *memory = ptx::allocate_fenced(bytes), cudaSuccess;
}
EXPORT cudaError_t cudaFree(void* memory) { return ptx::free_fenced(memory), cudaSuccess; }
EXPORT cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
EXPORT cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
EXPORT cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) { return *device = host, cudaSuccess; }
EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const auto fill = [=] { return std::memset(to, value, bytes), cudaSuccess; };
  return ptx::capture(stream, fill) ? cudaSuccess : fill();
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const auto copy = [=] { return std::memcpy(to, from, bytes), cudaSuccess; };
  return ptx::capture(stream, copy) ? cudaSuccess : copy();
}
EXPORT cudaError_t cudaDeviceSynchronize() { return ptx::forbids_waiting() ? refuse_in_capture() : cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new std::chrono::steady_clock::time_point);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<std::chrono::steady_clock::time_point*>(event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  *reinterpret_cast<std::chrono::steady_clock::time_point*>(event) = std::chrono::steady_clock::now();
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
EXPORT cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  const auto time = [](cudaEvent_t e) { return *reinterpret_cast<std::chrono::steady_clock::time_point*>(e); };
  *ms = std::chrono::duration<float, std::milli>(time(end) - time(begin)).count();
  return cudaSuccess;
}
