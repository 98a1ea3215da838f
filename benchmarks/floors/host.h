// Host side of the floors: memory, timing and device properties.
#pragma once
#include <algorithm>
#include <vector>

#include "cuda/device/launch.h"

namespace fused_rnn::cuda {

inline int multiprocessors() {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "asking for the multiprocessors");
  return count;
}

inline void* allocate(size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes), "allocating memory");
  return memory;
}
inline void release(void* memory) { cudaFree(memory); }
inline void copy(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault), "copying");
}
inline void wait_for_device() { check_cuda(cudaDeviceSynchronize(), "waiting for the GPU"); }

// GPU microseconds of everything that run() launches.
template <class Run>
double time_us(const Run& run) {
  struct Event {
    cudaEvent_t event;
    Event() { check_cuda(cudaEventCreate(&event), "creating an event"); }
    ~Event() { cudaEventDestroy(event); }
  } begin, end;
  check_cuda(cudaEventRecord(begin.event), "recording an event");
  run();
  check_cuda(cudaEventRecord(end.event), "recording an event");
  check_cuda(cudaEventSynchronize(end.event), "waiting for a kernel");
  float ms = 0;
  check_cuda(cudaEventElapsedTime(&ms, begin.event, end.event), "reading events");
  return 1e3 * ms;
}

// An array in device memory.
template <class T>
class Array {
 public:
  explicit Array(size_t count, int byte = 0) : count_(count), data_(static_cast<T*>(allocate(count * sizeof(T)))) {
    fill(byte);
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) { *this = values; }
  Array(const Array&) = delete;
  ~Array() { release(data_); }

  void operator=(const std::vector<T>& values) { copy(data_, values.data(), bytes()); }
  void fill(int byte) { fill_bytes(data_, byte, bytes(), nullptr); }
  T* data() { return data_; }
  size_t bytes() const { return count_ * sizeof(T); }
  std::vector<T> values() const {
    std::vector<T> found(count_);
    copy(found.data(), data_, bytes());
    wait_for_device();
    return found;
  }

 private:
  size_t count_;
  T* data_;
};

}  // namespace fused_rnn::cuda
