// Intrinsics, most of them inline PTX.
#pragma once
#include <cuda_runtime.h>

#include <cassert>
#include <cstddef>
#include <cstdint>

#include "cuda/device/scope.h"

#define FUSED_RNN_UNROLL _Pragma("unroll")
#define FUSED_RNN_NO_UNROLL _Pragma("unroll 1")

#define FUSED_RNN_DEVICE __device__ __forceinline__

namespace fused_rnn::cuda {
namespace {

// The architecture being compiled for. Kernels leave out code that it cannot run, and are not launched on it.
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;  // host code only refers to kernels
#endif

// 32-bit words that one instruction loads or stores.
template <int N>
struct alignas(4 * N) Pack {
  static_assert(N == 1 || N == 2 || N == 4);
  uint32_t word[N];
};

// The block's dynamic shared memory, aligned to 128 bytes.
FUSED_RNN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Device-side assert for values the host did not validate.
FUSED_RNN_DEVICE void require(bool condition) { assert(condition); }

// Keeps a shared-memory address in a register, which the compiler would otherwise recompute at every step.
template <class T>
FUSED_RNN_DEVICE T* keep_shared(T* place) {
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(place));
  asm("" : "+r"(address));
  return static_cast<T*>(__cvta_shared_to_generic(address));
}

// Marks a rarely taken branch: the compiler then emits a jump instead of computing both sides and selecting, value by
// value.
FUSED_RNN_DEVICE void rare() { asm volatile(""); }

// ---- memory that other blocks access concurrently ------------------------------------------------------------------
// Relaxed, at GPU scope: served by L2, never by a stale line of L1. Single words are never torn. kOffset, in bytes, is
// an immediate of the instruction.

template <int kOffset = 0>
FUSED_RNN_DEVICE void load_relaxed(Pack<1>& to, const void* from) {
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1+%2];" : "=r"(to.word[0]) : "l"(from), "n"(kOffset) : "memory");
}
template <int kOffset = 0>
FUSED_RNN_DEVICE void load_relaxed(Pack<2>& to, const void* from) {
  asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2+%3];"
               : "=r"(to.word[0]), "=r"(to.word[1])
               : "l"(from), "n"(kOffset)
               : "memory");
}
template <int kOffset = 0>
FUSED_RNN_DEVICE void load_relaxed(Pack<4>& to, const void* from) {
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4+%5];"
               : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
               : "l"(from), "n"(kOffset)
               : "memory");
}
template <int kOffset = 0>
FUSED_RNN_DEVICE void store_relaxed(void* to, const Pack<1>& v) {
  asm volatile("st.relaxed.gpu.global.b32 [%0+%2], %1;" ::"l"(to), "r"(v.word[0]), "n"(kOffset) : "memory");
}
template <int kOffset = 0>
FUSED_RNN_DEVICE void store_relaxed(void* to, const Pack<2>& v) {
  asm volatile("st.relaxed.gpu.global.v2.b32 [%0+%3], {%1, %2};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]), "n"(kOffset)
               : "memory");
}
template <int kOffset = 0>
FUSED_RNN_DEVICE void store_relaxed(void* to, const Pack<4>& v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0+%5], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]),
               "r"(v.word[2]), "r"(v.word[3]), "n"(kOffset)
               : "memory");
}

// Flags. Writes before a release are visible after an acquire that reads the released value.
FUSED_RNN_DEVICE uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
FUSED_RNN_DEVICE void store_release(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
FUSED_RNN_DEVICE void add_release(uint32_t* flag, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Backs off between two polls.
FUSED_RNN_DEVICE void keep_polling(unsigned nanoseconds = 0) {
  if (nanoseconds > 0) __nanosleep(nanoseconds);
}

FUSED_RNN_DEVICE uint64_t global_nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// ---- clusters: sm_90 and later -------------------------------------------------------------------------------------

FUSED_RNN_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// An address in another block's shared memory (DSMEM).
struct Remote {
  uint32_t address;
  FUSED_RNN_DEVICE Remote operator+(uint32_t bytes) const { return {address + bytes}; }
};

// The address in the block of this rank that corresponds to `own` in this block.
FUSED_RNN_DEVICE Remote map_remote(const void* own, unsigned rank) {
  Remote remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote.address) : "r"(shared_address(own)), "r"(rank));
  return remote;
}

FUSED_RNN_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The cluster's barrier, split: every thread calls both, in turn. Writes before arriving, to any shared memory of the
// cluster, are visible after waiting.
FUSED_RNN_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
FUSED_RNN_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

FUSED_RNN_DEVICE void store_remote(Remote to, const Pack<2>& v) {
  asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(to.address), "r"(v.word[0]), "r"(v.word[1])
               : "memory");
}
FUSED_RNN_DEVICE void store_remote(Remote to, const Pack<4>& v) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to.address), "r"(v.word[0]), "r"(v.word[1]),
               "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}

// A phase of an mbarrier completes once all its arrivals have happened and all expected bytes have been written; phases
// 0, 1, 2 ... have parities 0, 1, 0 ...

FUSED_RNN_DEVICE void mbarrier_init(uint64_t* mbarrier, unsigned arrivals) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n\t"
      "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(mbarrier)),
      "r"(arrivals)
      : "memory");
}
FUSED_RNN_DEVICE void mbarrier_arrive_and_expect(uint64_t* mbarrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mbarrier)),
               "r"(bytes)
               : "memory");
}
// Once this is true, the thread sees the data, provided that it acquires at the writers' scope (scope.h).
FUSED_RNN_DEVICE bool mbarrier_is_complete(uint64_t* mbarrier, unsigned parity,
                                           AcquireScope scope = AcquireScope::kCluster) {
  uint32_t complete;
  asm volatile(
      "{\n\t.reg .pred p, wide;\n\t"
      "setp.eq.s32 wide, %3, 0;\n\t"
      "@wide mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
      "@!wide mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(complete)
      : "r"(shared_address(mbarrier)), "r"(parity), "r"(static_cast<int>(scope))
      : "memory");
  return complete;
}

// st.async: stores, then counts the bytes at the mbarrier, which must be in the same block as the destination. The
// offsets are in bytes.
template <int kOffset = 0, int kCounterOffset = 0>
FUSED_RNN_DEVICE void store_async(Remote to, Remote mbarrier, const Pack<2>& v) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0+%4], {%1, %2}, [%3+%5];" ::"r"(to.address),
      "r"(v.word[0]), "r"(v.word[1]), "r"(mbarrier.address), "n"(kOffset), "n"(kCounterOffset)
      : "memory");
}
template <int kOffset = 0, int kCounterOffset = 0>
FUSED_RNN_DEVICE void store_async(Remote to, Remote mbarrier, const Pack<4>& v) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0+%6], {%1, %2, %3, %4}, [%5+%7];" ::"r"(
          to.address),
      "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]), "r"(mbarrier.address), "n"(kOffset),
      "n"(kCounterOffset)
      : "memory");
}

FUSED_RNN_DEVICE bool all_lanes(bool condition) { return __all_sync(~0u, condition); }

// ---- exchange within a warp ----------------------------------------------------------------------------------------

// The value of the lane whose number differs in these bits.
template <int kBits>
FUSED_RNN_DEVICE uint32_t word_across(uint32_t own) {
  uint32_t other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=r"(other) : "r"(own), "n"(kBits));
  return other;
}
template <int kBits>
FUSED_RNN_DEVICE float word_across(float own) {
  float other;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(other) : "f"(own), "n"(kBits));
  return other;
}
// The value of lane kLane among this lane's quad, 4i .. 4i + 3.
template <int kLane>
FUSED_RNN_DEVICE uint32_t word_of_four(uint32_t own) {
  uint32_t other;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 7199, -1;" : "=r"(other) : "r"(own), "n"(kLane));  // 7199: 28 << 8 | 31
  return other;
}

// ---- approximate functions of float: about 22 bits, tanh 11 ---------------------------------------------------------

FUSED_RNN_DEVICE float rough_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FUSED_RNN_DEVICE float rough_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FUSED_RNN_DEVICE float rough_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- mma.m16n8k*: d += a * b by a warp, d in float -----------------------------------------------------------------
// a is 16 x K, b is K x 8, in PTX's fragment layouts. A word holds two 16-bit numbers or one float. sm_80 and later.

FUSED_RNN_DEVICE void multiply_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  float sum[4];
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(d[0]), "f"(d[1]), "f"(d[2]), "f"(d[3]));
  for (int i = 0; i < 4; ++i) d[i] = sum[i];
}
FUSED_RNN_DEVICE void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  float sum[4];
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(d[0]), "f"(d[1]), "f"(d[2]), "f"(d[3]));
  for (int i = 0; i < 4; ++i) d[i] = sum[i];
}
// Rounds to TF32, 10 bits of mantissa, ties away from zero.
FUSED_RNN_DEVICE uint32_t to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}
// K = 8; the operands' last 13 bits are ignored.
FUSED_RNN_DEVICE void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  float sum[4];
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(d[0]), "f"(d[1]), "f"(d[2]), "f"(d[3]));
  for (int i = 0; i < 4; ++i) d[i] = sum[i];
}

}  // namespace
}  // namespace fused_rnn::cuda
