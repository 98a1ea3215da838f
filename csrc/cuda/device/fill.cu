#include "cuda/device/fill.h"

#include <algorithm>

#include "cuda/device/launch.h"

namespace fused_rnn::cuda {
namespace {

struct Numbers {
  static constexpr int64_t kMost = 256;  // kernel parameters are limited to 4 KB
  int64_t count, number[kMost];
};
__global__ void store_numbers(int64_t* to, const Numbers numbers) {
  if (threadIdx.x < numbers.count) to[threadIdx.x] = numbers.number[threadIdx.x];
}

}  // namespace

void launch_fill(void* to, int value, int64_t bytes, void* stream) {
  if (bytes > 0) fill_bytes(to, value, bytes, stream);
}

void launch_store_numbers(int64_t* to, const int64_t* from, int64_t count, void* stream) {
  for (int64_t i = 0; i < count; i += Numbers::kMost) {
    Numbers numbers = {std::min(Numbers::kMost, count - i), {}};
    std::copy_n(from + i, numbers.count, numbers.number);
    launch({dim3(1), dim3(Numbers::kMost), stream}, store_numbers, to + i, numbers);
  }
}

}  // namespace fused_rnn::cuda
