// The kernels behind the floors: each repeats one operation that a recurrent kernel needs in every step, and writes a
// result that shows it was done.
#pragma once
#include <cooperative_groups.h>

#include "cuda/persistent/waiter.cuh"

namespace fused_rnn::cuda {
namespace {

// ---- intrinsics that the library does not need ----------------------------------------------------------------------

FUSED_RNN_DEVICE int64_t clock_cycles() { return clock64(); }  // of this multiprocessor

FUSED_RNN_DEVICE void load_remote(Pack<1>& to, Remote from) {
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(to.word[0]) : "r"(from.address));
}
FUSED_RNN_DEVICE void load_remote(Pack<4>& to, Remote from) {
  asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
               : "r"(from.address));
}

constexpr uint32_t kNotYet = ~0u;  // initial value of polled memory

FUSED_RNN_DEVICE bool has_come(const Pack<4>& v) {
  return v.word[0] != kNotYet && v.word[1] != kNotYet && v.word[2] != kNotYet && v.word[3] != kNotYet;
}

FUSED_RNN_DEVICE void mbarrier_wait(uint64_t* mbarrier, unsigned parity) {
  while (!mbarrier_is_complete(mbarrier, parity)) keep_polling();
}

FUSED_RNN_DEVICE Pack<4> four_times(uint32_t word) { return {{word, word, word, word}}; }

// ---- launches -------------------------------------------------------------------------------------------------------

__global__ void do_nothing() {}

// ---- grid barriers of resident blocks -------------------------------------------------------------------------------

struct CooperativeGroups {
  static FUSED_RNN_DEVICE void wait(uint32_t*, uint32_t) { cooperative_groups::this_grid().sync(); }
};

// All blocks increment one word, and poll it.
struct Counter {
  static FUSED_RNN_DEVICE void wait(uint32_t* arrived, uint32_t round) {
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(arrived, 1);
      while (load_acquire(arrived) < round * gridDim.x) keep_polling();
    }
    __syncthreads();
  }
};

// Each block has its own word, and polls all of them, one per thread. No atomics.
struct Flags {
  static FUSED_RNN_DEVICE void wait(uint32_t* arrived, uint32_t round) {
    __syncthreads();
    if (threadIdx.x == 0) store_release(arrived + blockIdx.x, round);
    if (threadIdx.x < gridDim.x)
      while (load_acquire(arrived + threadIdx.x) < round) keep_polling();
    __syncthreads();
  }
};

// Each block passes its number to the previous block, `steps` times: numbers [2, blocks], the first initialized.
template <class Barrier>
__global__ void meet(uint32_t* arrived, uint32_t* numbers, int steps) {
  const unsigned n = gridDim.x, i = blockIdx.x;
  for (int t = 0; t < steps; ++t) {
    Barrier::wait(arrived, t + 1);
    if (threadIdx.x > 0) continue;
    Pack<1> next;
    load_relaxed(next, numbers + t % 2 * n + (i + 1) % n);
    store_relaxed(numbers + (t + 1) % 2 * n + i, next);
  }
}

// ---- hops between two blocks through L2 -----------------------------------------------------------------------------

// Ping-pong between blocks of one thread: each adds one. Polls the data itself. slots [steps], all kNotYet; out [2].
__global__ void hop_by_data(Pack<4>* slots, uint32_t* out, int steps) {
  Pack<4> value = {};
  for (int t = 0; t < steps; ++t) {
    if (t % 2 == int(blockIdx.x)) {
      store_relaxed(slots + t, four_times(value.word[0] + 1));
    } else {
      do {
        keep_polling();
        load_relaxed(value, slots + t);
      } while (!has_come(value));
    }
  }
  out[blockIdx.x] = value.word[0];
}

// The same with a flag per block beside the data: flags [2].
__global__ void hop_by_flag(Pack<4>* slots, uint32_t* flags, uint32_t* out, int steps) {
  Pack<4> value = {};
  for (int t = 0; t < steps; ++t) {
    uint32_t* const flag = flags + t % 2;
    if (t % 2 == int(blockIdx.x)) {
      store_relaxed(slots + t, four_times(value.word[0] + 1));
      store_release(flag, t + 1);
    } else {
      while (load_acquire(flag) < unsigned(t + 1)) keep_polling();
      load_relaxed(value, slots + t);
    }
  }
  out[blockIdx.x] = value.word[0];
}

// ---- all-gather of a grid: every block publishes a slice of h, all read the whole -----------------------------------

// The data of pack p in step t.
FUSED_RNN_DEVICE uint32_t published(unsigned t, unsigned p, unsigned packs) { return (t * packs + p) & 0x7fffffffu; }

// slots [steps, kPacks * threads], all kNotYet; sums [blocks, threads]: over one word of each pack read.
template <int kPacks>
__global__ void exchange_by_polling(Pack<4>* slots, uint32_t* sums, int steps, unsigned nanoseconds) {
  const unsigned i = threadIdx.x, packs = kPacks * blockDim.x, own = packs / gridDim.x;
  uint32_t sum = 0;
  for (int t = 0; t < steps; ++t) {
    Pack<4>* const slot = slots + size_t(t) * packs;
    for (unsigned p = blockIdx.x * own + i; p < (blockIdx.x + 1) * own; p += blockDim.x)
      store_relaxed(slot + p, four_times(published(t, p, packs)));
    Pack<4> got[kPacks];
    bool all;
    do {
      keep_polling(nanoseconds);
      all = true;
      FUSED_RNN_UNROLL
      for (int k = 0; k < kPacks; ++k) load_relaxed(got[k], slot + k * blockDim.x + i);
      FUSED_RNN_UNROLL
      for (int k = 0; k < kPacks; ++k) all = all && has_come(got[k]);
    } while (!all);
    FUSED_RNN_UNROLL
    for (int k = 0; k < kPacks; ++k) sum += got[k].word[0];
    __syncthreads();  // what a block publishes next depends on everything it has read
  }
  sums[blockIdx.x * blockDim.x + i] = sum;
}

// ---- clusters -------------------------------------------------------------------------------------------------------

// kPending: with a store to global memory (scratch, a pack for each thread) before every barrier.
template <bool kPending>
__global__ void meet_in_cluster(Pack<4>* scratch, int steps) {
  Pack<4>* const own = scratch + blockIdx.x * blockDim.x + threadIdx.x;
  for (int t = 0; t < steps; ++t) {
    if (kPending) *own = four_times(t);
    cluster_arrive();
    cluster_wait();
  }
  *own = four_times(steps);
}

// Ping-pong as above by asynchronous stores. out [2].
__global__ void hop_by_async_store(uint32_t* out, int steps) {
  uint64_t* const mbarrier = reinterpret_cast<uint64_t*>(shared_memory());
  Pack<4>* const slot = reinterpret_cast<Pack<4>*>(mbarrier + 2);
  const unsigned rank = cluster_rank();
  const Remote other_slot = map_remote(slot, 1 - rank), other_mbarrier = map_remote(mbarrier, 1 - rank);
  mbarrier_init(mbarrier, 1);
  mbarrier_arrive_and_expect(mbarrier, sizeof *slot);
  cluster_arrive();
  cluster_wait();
  uint32_t value = 0;
  for (int t = 0; t < steps; ++t) {
    if (t % 2 == int(rank)) {
      store_async(other_slot, other_mbarrier, four_times(value + 1));
    } else {
      mbarrier_wait(mbarrier, t / 2 % 2);
      mbarrier_arrive_and_expect(mbarrier, sizeof *slot);  // before our store, hence before the reply to it
      value = slot->word[0];
    }
  }
  out[rank] = value;
  cluster_arrive();  // the other block's store may still be in flight
  cluster_wait();
}

// All-gather of a cluster: every block sends its slice, `packs` of 16 bytes, to all, and continues with the next
// block's slice. By asynchronous stores with an mbarrier, or by plain ones with the cluster barrier. Double-buffered: a
// slot is overwritten after all have sent what they can only send after reading it. `packs` divides the number of
// threads. out [blocks, packs].
template <bool kAsync>
__global__ void exchange_in_cluster(uint32_t* out, unsigned size, unsigned packs, int steps) {
  uint64_t* const mbarriers = reinterpret_cast<uint64_t*>(shared_memory());
  Pack<4>* const slots = reinterpret_cast<Pack<4>*>(mbarriers + 2);  // [2, size, packs]
  const unsigned rank = cluster_rank(), p = threadIdx.x % packs, bytes = size * packs * sizeof(Pack<4>);
  for (int s = 0; s < 2 && kAsync && threadIdx.x == 0; ++s) {
    mbarrier_init(mbarriers + s, 1);
    mbarrier_arrive_and_expect(mbarriers + s, bytes);
  }
  cluster_arrive();
  cluster_wait();
  Pack<4> value = four_times(rank * packs + p);
  for (int t = 0; t < steps; ++t) {
    Pack<4>* const slot = slots + t % 2 * size * packs;
    uint64_t* const mbarrier = mbarriers + t % 2;
    for (unsigned to = threadIdx.x / packs; to < size; to += blockDim.x / packs) {
      const Remote place = map_remote(slot + rank * packs + p, to);
      if (kAsync)
        store_async(place, map_remote(mbarrier, to), value);
      else
        store_remote(place, value);
    }
    if (kAsync) {
      mbarrier_wait(mbarrier, t / 2 % 2);
      if (threadIdx.x == 0) mbarrier_arrive_and_expect(mbarrier, bytes);
    } else {
      cluster_arrive();
      cluster_wait();
    }
    value = slot[(rank + 1) % size * packs + p];
    if (kAsync) __syncthreads();
  }
  if (threadIdx.x < packs) out[blockIdx.x * packs + p] = value.word[0];
  cluster_arrive();
  cluster_wait();
}

constexpr unsigned kRing = 64;
FUSED_RNN_DEVICE unsigned next_in_ring(unsigned i) { return (5 * i + 7) % kRing; }  // a full cycle

// One thread chases a ring of indices in the other block of its cluster of two.
__global__ void chase_remote(uint32_t* out, int64_t* cycles, int steps) {
  uint32_t* const ring = reinterpret_cast<uint32_t*>(shared_memory());
  for (unsigned i = threadIdx.x; i < kRing; i += blockDim.x) ring[i] = sizeof(uint32_t) * next_in_ring(i);
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) {
    const Remote other = map_remote(ring, 1 - cluster_rank());
    Pack<1> at = {{0}};
    const int64_t begin = clock_cycles();
    for (int t = 0; t < steps; ++t) load_remote(at, other + at.word[0]);
    cycles[blockIdx.x] = clock_cycles() - begin;
    out[blockIdx.x] = at.word[0] / sizeof(uint32_t);
  }
  cluster_arrive();  // no block exits while its memory is read
  cluster_wait();
}

// Each thread reads kPacks packs of the next block of its cluster, `steps` times. sums [blocks, threads].
template <int kPacks>
__global__ void read_remote(uint32_t* sums, unsigned size, int steps) {
  Pack<4>* const memory = reinterpret_cast<Pack<4>*>(shared_memory());  // [kPacks, threads]
  const unsigned i = threadIdx.x, n = blockDim.x;
  for (int k = 0; k < kPacks; ++k) memory[k * n + i] = four_times(cluster_rank() + k * n + i);
  cluster_arrive();
  cluster_wait();
  const Remote from = map_remote(memory + i, (cluster_rank() + 1) % size);
  uint32_t sum = 0;
  for (int t = 0; t < steps; ++t) {
    Pack<4> got[kPacks];
    FUSED_RNN_UNROLL
    for (int k = 0; k < kPacks; ++k) load_remote(got[k], from + k * n * sizeof(Pack<4>));
    FUSED_RNN_UNROLL
    for (int k = 0; k < kPacks; ++k) sum += got[k].word[0] ^ got[k].word[3] ^ got[k].word[1];
  }
  sums[blockIdx.x * n + i] = sum;
  cluster_arrive();
  cluster_wait();
}

// Each thread writes kPacks packs of the next block of its cluster, `steps` times. out [blocks, kPacks, threads].
template <int kPacks>
__global__ void write_remote(uint32_t* out, unsigned size, int steps) {
  Pack<4>* const memory = reinterpret_cast<Pack<4>*>(shared_memory());  // [kPacks, threads]
  const unsigned i = threadIdx.x, n = blockDim.x;
  cluster_arrive();
  cluster_wait();
  const Remote to = map_remote(memory + i, (cluster_rank() + 1) % size);
  for (int t = 0; t < steps; ++t) {
    FUSED_RNN_UNROLL
    for (int k = 0; k < kPacks; ++k) store_remote(to + k * n * sizeof(Pack<4>), four_times(t + k * n + i));
  }
  cluster_arrive();
  cluster_wait();
  for (int k = 0; k < kPacks; ++k) out[(blockIdx.x * kPacks + k) * n + i] = memory[k * n + i].word[3];
}

// ---- bandwidth of L2 ------------------------------------------------------------------------------------------------

// Block b reads packs b * stride ... + packs of `from`, `steps` times (stride 0: all read the same), with a block
// barrier between steps, as in a recurrent kernel. `packs` is a multiple of the threads. sums [blocks, threads].
__global__ void read_again(const Pack<4>* from, size_t stride, unsigned packs, uint32_t* sums, int steps) {
  constexpr int kAtOnce = 4;  // in flight
  const Pack<4>* const own = from + blockIdx.x * stride + threadIdx.x;
  const unsigned n = blockDim.x;
  uint32_t sum = 0;
  for (int t = 0; t < steps; ++t) {
    for (unsigned p = 0; p < packs; p += kAtOnce * n) {
      Pack<4> got[kAtOnce] = {};
      FUSED_RNN_UNROLL
      for (int k = 0; k < kAtOnce; ++k)
        if (p + k * n < packs) load_relaxed(got[k], own + p + k * n);
      FUSED_RNN_UNROLL
      for (int k = 0; k < kAtOnce; ++k) sum += got[k].word[0];
    }
    __syncthreads();
  }
  sums[blockIdx.x * n + threadIdx.x] = sum;
}

// ---- matrix products ------------------------------------------------------------------------------------------------

struct BFloat16 {
  static constexpr uint32_t kOnes = 0x3f803f80;
  static constexpr int kDepth = 16;
  static FUSED_RNN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_bfloat16(d, a, b);
  }
};
struct Tf32 {
  static constexpr uint32_t kOnes = 0x3f800000;
  static constexpr int kDepth = 8;
  static FUSED_RNN_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_tf32(d, a, b);
  }
};

// Every warp multiplies ones, in kChains independent accumulators. out [blocks, warps]: the total of one lane; cycles
// [blocks, warps].
template <class Kind, int kChains>
__global__ void multiply_ones(float* out, int64_t* cycles, int steps) {
  const uint32_t a[4] = {Kind::kOnes, Kind::kOnes, Kind::kOnes, Kind::kOnes}, b[2] = {Kind::kOnes, Kind::kOnes};
  float d[kChains][4];
  for (int k = 0; k < kChains; ++k)
    for (int i = 0; i < 4; ++i) d[k][i] = float(k);  // distinct, or the compiler would merge them
  __syncthreads();
  const int64_t begin = clock_cycles();
  for (int t = 0; t < steps; ++t) {
    FUSED_RNN_UNROLL
    for (int k = 0; k < kChains; ++k) Kind::multiply(d[k], a, b);
  }
  const int64_t end = clock_cycles();
  float sum = 0;
  for (int k = 0; k < kChains; ++k)
    for (int i = 0; i < 4; ++i) sum += d[k][i];
  if (threadIdx.x % 32 > 0) return;
  const unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  out[warp] = sum;
  cycles[warp] = end - begin;
}

// ---- timeouts -------------------------------------------------------------------------------------------------------

// out: nanoseconds until the timeout.
__global__ void wait_in_vain(const Watch watch, const uint32_t* flag, uint64_t* out, int step) {
  Waiter waiter(watch, Blocks::kFlags, true, static_cast<int>(blockIdx.x), 0);
  const uint64_t since = global_nanoseconds();
  FirstLook first;
  while (load_acquire(flag) == 0)
    if (!waiter.keep_waiting(first)) break;
  if (waiter.is_aborted()) waiter.report(step);
  out[blockIdx.x] = global_nanoseconds() - since;
}

// ---- a kernel as large as a persistent one --------------------------------------------------------------------------

constexpr int kHeld = 208;  // numbers in registers: limits occupancy to one block per SM

// out [blocks, threads]: the sum of the final numbers, which start as own + i.
__global__ __launch_bounds__(256, 1) void hold_registers(uint32_t* out, int steps) {
  uint32_t held[kHeld];
  const unsigned own = blockIdx.x * blockDim.x + threadIdx.x;
  FUSED_RNN_UNROLL
  for (int i = 0; i < kHeld; ++i) held[i] = own + i;
  for (int t = 0; t < steps; ++t) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < kHeld; ++i) held[i] = 3 * held[i] ^ held[(i + 1) % kHeld];
    __syncthreads();  // keeps the compiler from merging steps, which would spill
  }
  uint32_t sum = 0;
  FUSED_RNN_UNROLL
  for (int i = 0; i < kHeld; ++i) sum += held[i];
  out[own] = sum;
}

}  // namespace
}  // namespace fused_rnn::cuda
