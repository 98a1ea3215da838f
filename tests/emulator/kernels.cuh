// Small kernels that are right, and become wrong by one fault each. Together they use all of csrc/cuda/device.h.
#pragma once
#include "cuda/device.h"

namespace fused_rnn {
namespace {

// ---- one block -----------------------------------------------------------------------------------------------------

// Each thread hands its number to the one opposite, in another warp.
__global__ void mirror(int* out, bool fault) {
  int* const numbers = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x, n = blockDim.x;
  numbers[i] = static_cast<int>(i);
  if (!fault) __syncthreads();
  out[i] = numbers[n - 1 - i];
}

// The same within a warp, whose lanes need not run in step either.
__global__ void mirror_in_warp(int* out, bool fault) {
  int* const numbers = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x;
  numbers[i] = static_cast<int>(i);
  if (!fault) __syncwarp();
  out[i] = numbers[31 - i];
}

// One buffer, used again by the next step: a second barrier keeps fast warps from overwriting what slow ones read.
__global__ void shift(int* out, int steps, bool fault) {
  volatile int* const numbers = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x, n = blockDim.x;
  int value = static_cast<int>(i);
  for (int t = 0; t < steps; ++t) {
    numbers[i] = value;
    __syncthreads();
    value = numbers[(i + 1) % n];
    if (!fault) __syncthreads();
  }
  out[i] = value;
}

__global__ void sum_first(float* out, unsigned count, bool fault) {
  float* const numbers = reinterpret_cast<float*>(shared_memory());
  const unsigned i = threadIdx.x;
  if (i < count || !fault) numbers[i] = i < count ? 1.f : 0.f;
  __syncthreads();
  float sum = 0;
  for (unsigned k = 0; k < blockDim.x; ++k) sum += numbers[k];
  out[i] = sum;
}

__global__ void fill(unsigned count) { shared_memory()[threadIdx.x < count ? threadIdx.x : 0] = 0; }

__global__ void some_wait(bool fault) {
  if (!fault || threadIdx.x % 32 < 16) __syncthreads();
}

__global__ void wait_apart(bool fault) {
  if (fault && threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void shuffle_some(int* out, bool fault) {
  if (!fault || threadIdx.x < 7) out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
}

// ---- a grid that is there all together -----------------------------------------------------------------------------

FUSED_RNN_DEVICE void grid_barrier(uint32_t* arrived, uint32_t target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    add_release(arrived, 1);
    while (load_acquire(arrived) < target) keep_polling(20);
  }
  __syncthreads();
}

__global__ void rotate(int* numbers, uint32_t* arrived, int steps, bool fault) {
  const unsigned n = gridDim.x;
  for (int t = 0; t < steps; ++t) {
    int* const from = numbers + t * n;
    if (threadIdx.x == 0) from[n + blockIdx.x] = from[(blockIdx.x + 1) % n];
    if (!fault) grid_barrier(arrived, (t + 1) * n);
  }
}

// Neighbours poll for the data itself: all ones means that it has not come.
__global__ void pass_on(Pack<4>* slots, int steps, bool fault) {
  if (threadIdx.x > 0) return;
  const unsigned n = gridDim.x;
  Pack<4> own = {{blockIdx.x, 1, 2, 3}};
  for (int t = 0; t < steps; ++t) {
    if (!(fault && blockIdx.x == 1 && t == 2)) store_relaxed(slots + t * n + blockIdx.x, own);
    do {
      keep_polling();
      load_relaxed(own, slots + t * n + (blockIdx.x + 1) % n);
    } while (own.word[0] == ~0u || own.word[1] == ~0u || own.word[2] == ~0u || own.word[3] == ~0u);
  }
  store_relaxed(slots + steps * n + blockIdx.x, own);
}

// ---- clusters ------------------------------------------------------------------------------------------------------

// Each block writes its rank into the next one's shared memory.
__global__ void tell_next(unsigned* out, unsigned size, bool no_wait, bool leaves) {
  Pack<2>* const slot = reinterpret_cast<Pack<2>*>(shared_memory());
  if (leaves && cluster_rank() == 0) return;
  if (threadIdx.x == 0)
    store_remote(map_remote(slot, (cluster_rank() + 1) % size), Pack<2>{{cluster_rank(), cluster_rank()}});
  if (!leaves) cluster_arrive();
  if (!leaves && !no_wait) cluster_wait();
  if (threadIdx.x == 0) out[blockIdx.x] = slot->word[1];
}

enum ExchangeFault { kNone, kNoWait, kNotArmedAgain, kNotInitialized, kOneSlot };

// Every block sends its number to all, by asynchronous stores, and goes on with the next one's. Two slots and an
// mbarrier for each: a block writes to a slot again when all have sent what they could only send after reading it.
__global__ void exchange(unsigned* out, unsigned size, int steps, ExchangeFault fault) {
  uint64_t* const mbarriers = reinterpret_cast<uint64_t*>(shared_memory());
  Pack<2>* const slots = reinterpret_cast<Pack<2>*>(mbarriers + 2);  // [2, size]
  const unsigned bytes = size * sizeof(Pack<2>), rank = cluster_rank(), i = threadIdx.x;
  for (int s = 0; s < 2 && i == 0; ++s) {
    if (fault != kNotInitialized) mbarrier_init(mbarriers + s, 1);
    mbarrier_arrive_and_expect(mbarriers + s, bytes);
  }
  cluster_arrive();
  cluster_wait();
  unsigned value = rank;
  for (int t = 0; t < steps; ++t) {
    Pack<2>* const slot = slots + (fault == kOneSlot ? 0 : t % 2 * size);
    uint64_t* const mbarrier = mbarriers + t % 2;
    if (i < size) store_async(map_remote(slot + rank, i), map_remote(mbarrier, i), Pack<2>{{value, value}});
    if (fault != kNoWait) mbarrier_wait(mbarrier, t / 2 % 2);
    if (i == 0 && fault != kNotArmedAgain) mbarrier_arrive_and_expect(mbarrier, bytes);
    value = slot[(rank + 1) % size].word[0];
    __syncthreads();
  }
  if (i == 0) out[blockIdx.x] = value;
  cluster_arrive();
  cluster_wait();
}

// ---- endless loops, impossible launches ----------------------------------------------------------------------------

__global__ void poll_for(const uint32_t* flag) {
  while (load_acquire(flag) == 0) keep_polling(100);
}

__global__ void nothing() {}

// ---- matrix products -----------------------------------------------------------------------------------------------

// What a kind multiplies: K, numbers of it in a word, and the instruction.
struct BFloat16Product {
  static constexpr int kDepth = 16, kNumbers = 2;
  static FUSED_RNN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_bfloat16(d, a, b);
  }
};
struct HalfProduct {
  static constexpr int kDepth = 16, kNumbers = 2;
  static FUSED_RNN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_half(d, a, b);
  }
};
struct Tf32Product {
  static constexpr int kDepth = 8, kNumbers = 1;
  static FUSED_RNN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_tf32(d, a, b);
  }
};
// Of floats that have yet to be rounded.
struct RoundedProduct {
  static constexpr int kDepth = 8, kNumbers = 1;
  static FUSED_RNN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t as[4] = {to_tf32(a[0]), to_tf32(a[1]), to_tf32(a[2]), to_tf32(a[3])};
    const uint32_t bs[2] = {to_tf32(b[0]), to_tf32(b[1])};
    multiply_tf32(d, as, bs);
  }
};

// One warp: d = a * b, with a [16, K], b as [8, K], by columns, and d [16, 8]. A lane's fragments are PTX's.
template <class Kind>
__global__ void multiply_matrices(const uint32_t* a, const uint32_t* b, float* d) {
  constexpr int kWords = Kind::kDepth / Kind::kNumbers;  // of a row
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  const uint32_t as[4] = {a[g * kWords + q], a[(g + 8) * kWords + q], a[g * kWords + q + kWords / 2],
                          a[(g + 8) * kWords + q + kWords / 2]};
  const uint32_t bs[2] = {b[g * kWords + q], b[g * kWords + q + kWords / 2]};
  float sums[4] = {};
  Kind::multiply(sums, as, bs);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = sums[i];
}

}  // namespace
}  // namespace fused_rnn
