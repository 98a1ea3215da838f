// The times below which no recurrent kernel on this GPU can go: a launch, and the ways in which blocks can meet.
// gpu_check.py builds this as a plain library and calls it through ctypes. Every function returns microseconds for
// one launch, meeting or hop, or minus the CUDA error.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cuda/atomic>

namespace cg = cooperative_groups;

namespace {

constexpr int kFlagStride = 32;  // words: flags in cache lines of their own

__device__ cuda::atomic_ref<unsigned, cuda::thread_scope_device> flag(unsigned* flags, int index) {
  return cuda::atomic_ref<unsigned, cuda::thread_scope_device>(flags[index * kFlagStride]);
}

__global__ void empty_kernel() {}

__global__ void grid_sync_kernel(int count) {
  for (int i = 0; i < count; ++i) cg::this_grid().sync();
}

__global__ void cluster_sync_kernel(int count) {
  for (int i = 0; i < count; ++i) cg::this_cluster().sync();
}

// What a recurrent kernel does where it has no grid.sync(): arrive at one counter, then wait until all have.
__global__ void flag_barrier_kernel(int count, unsigned* flags) {
  for (unsigned i = 1; i <= count; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      flag(flags, 0).fetch_add(1, cuda::memory_order_release);
      while (flag(flags, 0).load(cuda::memory_order_acquire) < i * gridDim.x) {
      }
    }
    __syncthreads();
  }
}

// Two blocks of one thread answer each other: two hops through L2 each time.
__global__ void hop_kernel(int count, unsigned* flags) {
  for (unsigned i = 1; i <= count; ++i) {
    if (blockIdx.x == 0) flag(flags, 1).store(i, cuda::memory_order_release);
    while (flag(flags, blockIdx.x).load(cuda::memory_order_acquire) < i) {
    }
    if (blockIdx.x == 1) flag(flags, 0).store(i, cuda::memory_order_release);
  }
}

// The time of the second of two runs, in microseconds; the first is the warm-up.
template <class Run>
double time_us(Run run) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  cudaError_t error = run();
  cudaEventRecord(begin);
  if (error == cudaSuccess) error = run();
  cudaEventRecord(end);
  if (error == cudaSuccess) error = cudaEventSynchronize(end);
  float ms = 0;
  if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return error == cudaSuccess ? 1e3 * ms : -static_cast<double>(error);
}

// A cooperative launch: all blocks are resident, so that they may wait for each other.
cudaError_t launch_together(const void* kernel, int blocks, int threads, void** arguments) {
  return cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(threads), arguments, 0, nullptr);
}

double time_with_flags(void (*kernel)(int, unsigned*), int blocks, int threads, int count) {
  constexpr size_t kBytes = 2 * kFlagStride * sizeof(unsigned);
  unsigned* flags = nullptr;
  cudaError_t error = cudaMalloc(&flags, kBytes);
  if (error != cudaSuccess) return -static_cast<double>(error);
  void* arguments[] = {&count, &flags};
  const double us = time_us([&] {
    const cudaError_t cleared = cudaMemsetAsync(flags, 0, kBytes);
    return cleared != cudaSuccess ? cleared
                                  : launch_together(reinterpret_cast<void*>(kernel), blocks, threads, arguments);
  });
  cudaFree(flags);
  return us;
}

double each(double us, int count) { return us < 0 ? us : us / count; }

}  // namespace

extern "C" {

double floor_launch(int count) {
  const double us = time_us([&] {
    for (int i = 0; i < count; ++i) empty_kernel<<<1, 32>>>();
    return cudaGetLastError();
  });
  return each(us, count);
}

double floor_grid_sync(int blocks, int threads, int count) {
  void* arguments[] = {&count};
  const auto run = [&] {
    return launch_together(reinterpret_cast<void*>(grid_sync_kernel), blocks, threads, arguments);
  };
  return each(time_us(run), count);
}

double floor_flag_barrier(int blocks, int threads, int count) {
  return each(time_with_flags(flag_barrier_kernel, blocks, threads, count), count);
}

double floor_hop(int count) { return each(time_with_flags(hop_kernel, 2, 1, count), 2 * count); }

double floor_cluster_sync(int blocks, int threads, int count) {
  cudaError_t error = cudaFuncSetAttribute(cluster_sync_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return -static_cast<double>(error);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return each(time_us([&] { return cudaLaunchKernelEx(&config, cluster_sync_kernel, count); }), count);
}

}  // extern "C"
