// How the blocks of a group give each other, at every step, what the next one needs: a slot of numbers
// (arithmetic.cuh).
//
//   publish(slot, byte, four)   all lanes of a warp call; `four` is the same in four neighbouring lanes
//   arrive(slot)                after a thread's last publication of a slot
//   wait(slot)                  before the first look at it; all threads
//   begin_of(slot)              where its numbers are; load() reads 16 bytes, settle() waits until they are valid
//
// A slot may be written again two slots later: whoever writes slot i + 2 has waited for slot i + 1, whose parts every
// block publishes after it has read slot i.
#pragma once
#include "arithmetic.cuh"

namespace fused_rnn {
namespace {

struct Group {
  unsigned char* ring;  // of this launch, in global memory
  uint32_t* flags;
  int blocks, number, rank;          // this block is `rank` of group `number`
  unsigned slot_bytes, known_bytes;  // of a slot; of what all blocks together publish in it
  int slots;                         // of the whole run
  AcquireScope scope;                // of a cluster's waits
};

// One block: the slots are in its shared memory.
struct OneBlock {
  static constexpr bool kCluster = false, kCooperative = false, kRingIsShared = true, kSlotPerStep = false;
  static constexpr int kSharedBytes = 0;

  FUSED_RNN_DEVICE OneBlock(const Group& group, unsigned char* shared) : bytes_(group.slot_bytes), ring_(shared) {}
  FUSED_RNN_DEVICE void begin() {
    for (unsigned i = threadIdx.x; i < 2 * bytes_ / 4; i += blockDim.x) reinterpret_cast<uint32_t*>(ring_)[i] = 0;
    __syncthreads();
  }
  template <class S>
  FUSED_RNN_DEVICE void publish(int slot, unsigned byte, const Four<S>& four) {
    if (threadIdx.x % 4 == 0) *reinterpret_cast<Four<S>*>(ring_ + slot % 2 * bytes_ + byte) = four;
  }
  FUSED_RNN_DEVICE void arrive(int) {}
  FUSED_RNN_DEVICE void wait(int) { __syncthreads(); }
  FUSED_RNN_DEVICE const unsigned char* begin_of(int slot) const { return ring_ + slot % 2 * bytes_; }
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const { return *reinterpret_cast<const Pack<4>*>(from); }
  FUSED_RNN_DEVICE void settle(const unsigned char*, Pack<4>&) const {}

 private:
  unsigned bytes_;
  unsigned char* ring_;
};

// A cluster: every block has slots in its shared memory, and publications are written to all of them. The bytes are
// counted where they arrive, so nobody waits for more than its own data. sm_90 and later.
class Cluster {
 public:
  static constexpr bool kCluster = true, kCooperative = false, kRingIsShared = true, kSlotPerStep = false;
  static constexpr int kSharedBytes = 128;  // two mbarriers; the ring stays aligned
  static constexpr int kMostBlocks = 16;

  FUSED_RNN_DEVICE Cluster(const Group& group, unsigned char* shared)
      : group_(group), counters_(reinterpret_cast<uint64_t*>(shared)), ring_(shared + kSharedBytes) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < kPeers; ++i) {
      const int rank = threadIdx.x % 4 + 4 * i;
      peers_[i] = map_remote(shared, rank < group.blocks ? rank : 0);
    }
  }
  FUSED_RNN_DEVICE void begin() {
    for (unsigned i = threadIdx.x; i < 2 * group_.slot_bytes / 4; i += blockDim.x)
      reinterpret_cast<uint32_t*>(ring_)[i] = 0;
    if (threadIdx.x == 0)
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(counters_ + i, 1);
        mbarrier_arrive_and_expect(counters_ + i, group_.known_bytes);
      }
    cluster_arrive();  // nothing may come before all this is done
    cluster_wait();
  }
  // The four lanes that have it share out the ranks.
  template <class S>
  FUSED_RNN_DEVICE void publish(int slot, unsigned byte, const Four<S>& four) {
    const unsigned to = kSharedBytes + slot % 2 * group_.slot_bytes + byte, counter = slot % 2 * sizeof(uint64_t);
    FUSED_RNN_UNROLL
    for (int i = 0; i < kPeers; ++i) {
      if (static_cast<int>(threadIdx.x % 4) + 4 * i >= group_.blocks) continue;
      FUSED_RNN_UNROLL
      for (int part = 0; part < Four<S>::kPacks; ++part)
        store_async(peers_[i] + (to + part * 16), peers_[i] + counter, four.pack[part]);
    }
  }
  FUSED_RNN_DEVICE void arrive(int) {}
  FUSED_RNN_DEVICE void wait(int slot) {
    mbarrier_wait(counters_ + slot % 2, slot / 2 % 2, group_.scope);
    // For the slot after the next: its parts come from blocks that have ours of the next one.
    if (threadIdx.x == 0) mbarrier_arrive_and_expect(counters_ + slot % 2, group_.known_bytes);
  }
  FUSED_RNN_DEVICE const unsigned char* begin_of(int slot) const { return ring_ + slot % 2 * group_.slot_bytes; }
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const { return *reinterpret_cast<const Pack<4>*>(from); }
  FUSED_RNN_DEVICE void settle(const unsigned char*, Pack<4>&) const {}

 private:
  static constexpr int kPeers = kMostBlocks / 4;

  Group group_;
  uint64_t* counters_;
  unsigned char* ring_;
  Remote peers_[kPeers];
};

// Any blocks, through the second-level cache, and the data themselves say that they are there: every step has a slot of
// its own, filled with ones beforehand, and a word of all ones has not been written yet. No flag, no fence, no barrier.
class Polling {
 public:
  static constexpr bool kCluster = false, kCooperative = true, kRingIsShared = false, kSlotPerStep = true;
  static constexpr int kSharedBytes = 0;

  FUSED_RNN_DEVICE Polling(const Group& group, unsigned char*)
      : bytes_(group.slot_bytes),
        ring_(group.ring + static_cast<size_t>(group.number) * group.slots * group.slot_bytes) {}
  FUSED_RNN_DEVICE void begin() {}
  template <class S>
  FUSED_RNN_DEVICE void publish(int slot, unsigned byte, const Four<S>& four) {
    static_assert(sizeof(S) <= 4, "half of a double may be all ones");
    if (threadIdx.x % 4 == 0) store_relaxed(ring_ + static_cast<size_t>(slot) * bytes_ + byte, four.pack[0]);
  }
  // What nobody publishes, behind the last number of a slot, is zeros. For one thread.
  template <class S>
  FUSED_RNN_DEVICE void clear(int slot, unsigned byte) {
    store_relaxed(ring_ + static_cast<size_t>(slot) * bytes_ + byte, Four<S>{}.pack[0]);
  }
  FUSED_RNN_DEVICE void arrive(int) {}
  FUSED_RNN_DEVICE void wait(int) {}
  FUSED_RNN_DEVICE const unsigned char* begin_of(int slot) const { return ring_ + static_cast<size_t>(slot) * bytes_; }
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const {
    Pack<4> loaded;
    load_relaxed(loaded, from);
    return loaded;
  }
  FUSED_RNN_DEVICE void settle(const unsigned char* from, Pack<4>& loaded) const {
    while (loaded.word[0] == ~0u || loaded.word[1] == ~0u || loaded.word[2] == ~0u || loaded.word[3] == ~0u) {
      keep_polling();
      loaded = load(from);
    }
  }

 private:
  unsigned bytes_;
  unsigned char* ring_;
};

// Any blocks, with a flag for each: the portable way.
class Flags {
 public:
  static constexpr bool kCluster = false, kCooperative = true, kRingIsShared = false, kSlotPerStep = false;
  static constexpr int kSharedBytes = 0;

  FUSED_RNN_DEVICE Flags(const Group& group, unsigned char*)
      : group_(group),
        ring_(group.ring + static_cast<size_t>(group.number) * 2 * group.slot_bytes),
        flags_(group.flags + group.number * group.blocks) {}
  FUSED_RNN_DEVICE void begin() {}  // ring and flags are zeros
  template <class S>
  FUSED_RNN_DEVICE void publish(int slot, unsigned byte, const Four<S>& four) {
    if (threadIdx.x % 4 > 0) return;
    FUSED_RNN_UNROLL
    for (int part = 0; part < Four<S>::kPacks; ++part)
      store_relaxed(ring_ + slot % 2 * group_.slot_bytes + byte + part * 16, four.pack[part]);
  }
  FUSED_RNN_DEVICE void arrive(int slot) {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags_ + group_.rank, slot + 1);
  }
  FUSED_RNN_DEVICE void wait(int slot) {
    constexpr unsigned kNanoseconds = 20;
    for (int i = threadIdx.x; i < group_.blocks && threadIdx.x < 32; i += 32)
      while (load_acquire(flags_ + i) < static_cast<uint32_t>(slot + 1)) keep_polling(kNanoseconds);
    __syncthreads();
  }
  FUSED_RNN_DEVICE const unsigned char* begin_of(int slot) const { return ring_ + slot % 2 * group_.slot_bytes; }
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const {
    Pack<4> loaded;
    load_relaxed(loaded, from);
    return loaded;
  }
  FUSED_RNN_DEVICE void settle(const unsigned char*, Pack<4>&) const {}

 private:
  Group group_;
  unsigned char* ring_;
  uint32_t* flags_;
};

}  // namespace
}  // namespace fused_rnn
