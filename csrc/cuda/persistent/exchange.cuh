// Per-step all-gather between the blocks of a group: of h, backward of dgates. A step gathers into a slot (its layout:
// arithmetic.cuh) of a ring of two; kParity is 0 in slots 0, 2, 4 .., so that addresses are compile-time constants. In
// shared memory a slot has kSlotBytes.
//
//   outlet(bytes)        where a lane writes its quads (quads.cuh), whose runs begin at these bytes of a slot
//   publish(..)          writes a quad of the next slot; called by all lanes of a warp, after gather_quad
//   arrive(slot)         after a thread's last publish of a slot
//   wait(slot)           before the first load of it, by all threads. Where kWaitCanFail, false (uniform over a warp)
//                        after a timeout: report(slot) then tells the host, and only end_run may follow
//   look_from(byte)      sets the offset of a lane's loads in every slot; after the outlets
//   begin()              that address in the current slot. load() reads 16 bytes of it; where kPolls they may not have
//                        arrived yet (is_missing, keep_waiting), and are NaN after a timeout
//   end_waits(slot)      where kPolls, after the last load: reports a timeout
//   turn()               advances to the next slot
//   end_run()            after the last slot
//
// Two slots suffice: a block writes slot i + 2 after waiting for slot i + 1, and every block publishes its part of slot
// i + 1 after reading slot i.
#pragma once
#include "cuda/device/unrolled.cuh"
#include "cuda/persistent/quads.cuh"
#include "cuda/persistent/waiter.cuh"

namespace fused_rnn::cuda {
namespace {

struct Group {
  unsigned char* ring;  // of this launch, in global memory
  uint32_t* flags;
  int blocks, number, rank;          // this block is `rank` of group `number`
  unsigned slot_bytes, known_bytes;  // of a slot; of it, without padding
  int slots;                         // in the whole run
  int first_step;                    // step of slot 0
  AcquireScope scope;                // of a cluster's waits
  Waiter waiter;
};

// Zeros the first `bytes` of two slots: the padding takes part in the product.
template <int kSlotBytes>
FUSED_RNN_DEVICE void clear_slots(unsigned char* ring, unsigned bytes) {
  for (unsigned i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16)
    *reinterpret_cast<Pack<4>*>(ring + i) = *reinterpret_cast<Pack<4>*>(ring + kSlotBytes + i) = {};
}

// One block: the slots are in its shared memory.
class OneBlock {
 public:
  static constexpr bool kCluster = false, kCooperative = false, kRingIsShared = true, kSlotPerStep = false,
                        kPolls = false, kWaitCanFail = false;
  static constexpr int kSharedBytes = 0;
  template <int kRuns>
  struct Outlet {
    unsigned char* to[kRuns];
  };

  static constexpr Blocks kBlocks = Blocks::kOne;

  FUSED_RNN_DEVICE OneBlock(const Group& group, unsigned char* shared) : bytes_(group.slot_bytes), ring_(shared) {}
  template <int kSlotBytes>
  FUSED_RNN_DEVICE void begin_run() {
    clear_slots<kSlotBytes>(ring_, bytes_);
    __syncthreads();
  }
  template <int kRuns>
  FUSED_RNN_DEVICE Outlet<kRuns> outlet(const unsigned (&bytes)[kRuns]) const {
    Outlet<kRuns> outlet;
    FUSED_RNN_UNROLL
    for (int run = 0; run < kRuns; ++run) outlet.to[run] = ring_ + bytes[run];
    return outlet;
  }
  template <int kParity, int kSlotBytes, class Quad>
  FUSED_RNN_DEVICE void publish(Outlet<Quad::kRuns>& outlet, const Quad& quad) {
    if (threadIdx.x % 4 > 0) return;
    FUSED_RNN_UNROLL
    for (int run = 0; run < Quad::kRuns; ++run) FUSED_RNN_UNROLL
    for (int i = 0; i < Quad::kPacks; ++i)
      *reinterpret_cast<Pack<Quad::kWords>*>(outlet.to[run] + kParity * kSlotBytes + i * 4 * Quad::kWords) =
          quad.pack[run][i];
  }
  FUSED_RNN_DEVICE void arrive(int) {}
  template <int kParity>
  FUSED_RNN_DEVICE bool wait(int) {
    __syncthreads();
    return true;
  }
  FUSED_RNN_DEVICE void look_from(unsigned byte) { ring_ = keep_shared(ring_ + byte); }
  template <int kParity, int kSlotBytes>
  FUSED_RNN_DEVICE const unsigned char* begin() const {
    return ring_ + kParity * kSlotBytes;
  }
  template <int kOffset>
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const {
    return *reinterpret_cast<const Pack<4>*>(from + kOffset);
  }
  template <int kParity>
  FUSED_RNN_DEVICE void turn() {}
  FUSED_RNN_DEVICE void end_run() {}

 private:
  unsigned bytes_;
  unsigned char* ring_;
};

// A cluster: every block has slots in its shared memory and publishes to all blocks by asynchronous stores, which the
// receiver's mbarrier counts: a block waits for its own data only. sm_90 and later.
class Cluster {
 public:
  static constexpr bool kCluster = true, kCooperative = false, kRingIsShared = true, kSlotPerStep = false,
                        kPolls = false, kWaitCanFail = true;
  static constexpr int kSharedBytes = 128;  // two mbarriers; the ring stays aligned
  static constexpr int kPeers = kMostClusterBlocks / 4;
  // Per peer, the address of the first run; the other runs' distances from it.
  template <int kRuns>
  struct Outlet {
    Remote to[kPeers];
    unsigned distance[kRuns];
  };

  static constexpr Blocks kBlocks = Blocks::kCluster;

  FUSED_RNN_DEVICE Cluster(const Group& group, unsigned char* shared)
      : group_(group),
        counters_(reinterpret_cast<uint64_t*>(shared)),
        ring_(shared + kSharedBytes),
        peer_count_((group.blocks + 3 - static_cast<int>(threadIdx.x % 4)) / 4),
        arms_(threadIdx.x == 0) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < kPeers; ++i) {
      const int rank = threadIdx.x % 4 + 4 * i;
      peers_[i] = map_remote(shared, rank < group.blocks ? rank : 0);
    }
  }
  template <int kSlotBytes>
  FUSED_RNN_DEVICE void begin_run() {
    clear_slots<kSlotBytes>(ring_, group_.slot_bytes);
    if (arms_)
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(counters_ + i, 1);
        mbarrier_arrive_and_expect(counters_ + i, group_.known_bytes);
      }
    cluster_arrive();  // no store may arrive before this
    cluster_wait();
  }
  template <int kRuns>
  FUSED_RNN_DEVICE Outlet<kRuns> outlet(const unsigned (&bytes)[kRuns]) const {
    Outlet<kRuns> outlet;
    FUSED_RNN_UNROLL
    for (int i = 0; i < kPeers; ++i) outlet.to[i] = peers_[i] + (kSharedBytes + bytes[0]);
    FUSED_RNN_UNROLL
    for (int run = 0; run < kRuns; ++run) outlet.distance[run] = bytes[run] - bytes[0];
    return outlet;
  }
  // Each of the quad's four lanes serves a quarter of the peers.
  template <int kParity, int kSlotBytes, class Quad>
  FUSED_RNN_DEVICE void publish(Outlet<Quad::kRuns>& outlet, const Quad& quad) {
    constexpr int kCounter = kParity * sizeof(uint64_t);
    FUSED_RNN_UNROLL
    for (int i = 0; i < kPeers; ++i) {
      if (i >= peer_count_) return;
      unrolled<Quad::kRuns>([&](auto run) {
        const Remote to = run == 0 ? outlet.to[i] : outlet.to[i] + outlet.distance[run];
        unrolled<Quad::kPacks>([&](auto part) {
          constexpr int kOffset = kParity * kSlotBytes + part * 4 * Quad::kWords;
          store_async<kOffset, kCounter>(to, peers_[i], quad.pack[run][part]);
        });
      });
    }
  }
  FUSED_RNN_DEVICE void arrive(int) {}
  template <int kParity>
  FUSED_RNN_DEVICE bool wait(int) {
    FirstLook first;
    group_.waiter.begin_step();
    while (!all_lanes(mbarrier_is_complete(counters_ + kParity, phase_, group_.scope)))
      if (!all_lanes(group_.waiter.keep_waiting(first))) {
        group_.waiter.stop();  // for lanes that have not timed out themselves
        return false;
      }
    // For slot + 2, whose parts come only from blocks that have received ours of slot + 1.
    if (arms_) mbarrier_arrive_and_expect(counters_ + kParity, group_.known_bytes);
    return true;
  }
  FUSED_RNN_DEVICE void report(int slot) const { group_.waiter.report(group_.first_step + slot); }
  FUSED_RNN_DEVICE void look_from(unsigned byte) { ring_ = keep_shared(ring_ + byte); }
  template <int kParity, int kSlotBytes>
  FUSED_RNN_DEVICE const unsigned char* begin() const {
    return ring_ + kParity * kSlotBytes;
  }
  template <int kOffset>
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const {
    return *reinterpret_cast<const Pack<4>*>(from + kOffset);
  }
  template <int kParity>
  FUSED_RNN_DEVICE void turn() {
    if (kParity == 1) phase_ ^= 1;
  }
  // No block exits while others may still store to its memory. After a timeout it cannot know what is in flight.
  FUSED_RNN_DEVICE void end_run() {
    constexpr uint64_t kDrainNanoseconds = 100'000;  // for stores to this block in flight: one takes a thousand
    cluster_arrive();
    cluster_wait();
    if (!group_.waiter.is_aborted()) return;
    const uint64_t until = global_nanoseconds() + kDrainNanoseconds;
    while (global_nanoseconds() < until) keep_polling(1000);
  }

 private:
  Group group_;
  uint64_t* counters_;
  unsigned char* ring_;
  Remote peers_[kPeers];
  int peer_count_;
  bool arms_;
  unsigned phase_ = 0;
};

// Any co-resident blocks, through L2, by polling the data itself: every step has a slot of its own, preset to all ones;
// a word of all ones has not been written yet. No flag, no fence, no barrier.
class Polling {
 public:
  static constexpr bool kCluster = false, kCooperative = true, kRingIsShared = false, kSlotPerStep = true,
                        kPolls = true, kWaitCanFail = false;
  static constexpr int kSharedBytes = 0;
  template <int kRuns>
  struct Outlet {
    unsigned char* to;  // in the next slot to publish
    unsigned distance[kRuns];
  };

  static constexpr Blocks kBlocks = Blocks::kPolling;

  FUSED_RNN_DEVICE Polling(const Group& group, unsigned char*) : group_(group), ring_(first_slot()) {}
  template <int kSlotBytes>
  FUSED_RNN_DEVICE void begin_run() {}
  template <int kRuns>
  FUSED_RNN_DEVICE Outlet<kRuns> outlet(const unsigned (&bytes)[kRuns]) const {
    Outlet<kRuns> outlet = {ring_ + bytes[0]};
    FUSED_RNN_UNROLL
    for (int run = 0; run < kRuns; ++run) outlet.distance[run] = bytes[run] - bytes[0];
    return outlet;
  }
  template <int kParity, int kSlotBytes, class Quad>
  FUSED_RNN_DEVICE void publish(Outlet<Quad::kRuns>& outlet, const Quad& quad) {
    static_assert(Quad::kNumberBytes <= 4, "half of a double may be all ones");
    if (threadIdx.x % 4 == 0)
      unrolled<Quad::kRuns>([&](auto run) {
        unsigned char* const to = run == 0 ? outlet.to : outlet.to + outlet.distance[run];
        unrolled<Quad::kPacks>([&](auto part) {
          constexpr int kOffset = part * 4 * Quad::kWords;
          store_relaxed<kOffset>(to, quad.pack[run][part]);
        });
      });
    outlet.to += group_.slot_bytes;
  }
  // Zeros a word of a slot's padding. Before the first turn.
  template <class S>
  FUSED_RNN_DEVICE void clear(int slot, unsigned byte) {
    store_relaxed(ring_ + static_cast<size_t>(slot) * group_.slot_bytes + byte, Pack<sizeof(S)>{});
  }
  FUSED_RNN_DEVICE void arrive(int) {}
  template <int kParity>
  FUSED_RNN_DEVICE bool wait(int) {
    return true;
  }
  FUSED_RNN_DEVICE void look_from(unsigned byte) { ring_ += byte; }
  template <int kParity, int kSlotBytes>
  FUSED_RNN_DEVICE const unsigned char* begin() const {
    return ring_;
  }
  template <int kOffset>
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const {
    Pack<4> loaded;
    load_relaxed<kOffset>(loaded, from);
    return loaded;
  }
  // Whether any word has not been written yet.
  template <int kCount>
  static FUSED_RNN_DEVICE bool is_missing(const Pack<4> (&loaded)[kCount]) {
    uint32_t most = 0;
    FUSED_RNN_UNROLL
    for (int i = 0; i < kCount; ++i) FUSED_RNN_UNROLL
    for (int w = 0; w < 4; ++w) most = loaded[i].word[w] > most ? loaded[i].word[w] : most;
    return most == ~0u;
  }
  FUSED_RNN_DEVICE bool keep_waiting(FirstLook& first) { return group_.waiter.keep_waiting(first); }
  FUSED_RNN_DEVICE void end_waits(int slot) {
    if (group_.waiter.is_aborted())
      group_.waiter.report(group_.first_step + slot);
    else
      group_.waiter.begin_step();
  }
  template <int kParity>
  FUSED_RNN_DEVICE void turn() {
    ring_ += group_.slot_bytes;
  }
  FUSED_RNN_DEVICE void end_run() {}

 private:
  FUSED_RNN_DEVICE unsigned char* first_slot() const {
    return group_.ring + static_cast<size_t>(group_.number) * group_.slots * group_.slot_bytes;
  }

  Group group_;
  unsigned char* ring_;  // the current slot
};

// Any co-resident blocks, through L2, with a release/acquire flag per block: the portable way.
class Flags {
 public:
  static constexpr bool kCluster = false, kCooperative = true, kRingIsShared = false, kSlotPerStep = false,
                        kPolls = false, kWaitCanFail = true;
  static constexpr int kSharedBytes = 0;
  template <int kRuns>
  struct Outlet {
    unsigned char* to[kRuns];
  };

  static constexpr Blocks kBlocks = Blocks::kFlags;

  FUSED_RNN_DEVICE Flags(const Group& group, unsigned char*)
      : group_(group),
        ring_(group.ring + static_cast<size_t>(group.number) * 2 * group.slot_bytes),
        flags_(group.flags + group.number * group.blocks) {}
  template <int kSlotBytes>
  FUSED_RNN_DEVICE void begin_run() {}  // ring and flags are zeroed by the host
  template <int kRuns>
  FUSED_RNN_DEVICE Outlet<kRuns> outlet(const unsigned (&bytes)[kRuns]) const {
    Outlet<kRuns> outlet;
    FUSED_RNN_UNROLL
    for (int run = 0; run < kRuns; ++run) outlet.to[run] = ring_ + bytes[run];
    return outlet;
  }
  template <int kParity, int kSlotBytes, class Quad>
  FUSED_RNN_DEVICE void publish(Outlet<Quad::kRuns>& outlet, const Quad& quad) {
    if (threadIdx.x % 4 > 0) return;
    unrolled<Quad::kRuns>([&](auto run) {
      unsigned char* const to = outlet.to[run] + kParity * group_.slot_bytes;
      unrolled<Quad::kPacks>([&](auto part) {
        constexpr int kOffset = part * 4 * Quad::kWords;
        store_relaxed<kOffset>(to, quad.pack[run][part]);
      });
    });
  }
  FUSED_RNN_DEVICE void arrive(int slot) {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags_ + group_.rank, slot + 1);
  }
  template <int kParity>
  FUSED_RNN_DEVICE bool wait(int slot) {
    constexpr unsigned kNanoseconds = 20;
    group_.waiter.begin_step();
    for (int i = threadIdx.x; i < group_.blocks && threadIdx.x < 32; i += 32) {
      FirstLook first;
      while (load_acquire(flags_ + i) < static_cast<uint32_t>(slot + 1))
        if (!group_.waiter.keep_waiting(first, kNanoseconds)) break;
    }
    return __syncthreads_and(!group_.waiter.is_aborted());
  }
  FUSED_RNN_DEVICE void report(int slot) const {
    if (group_.waiter.is_aborted()) group_.waiter.report(group_.first_step + slot);
  }
  FUSED_RNN_DEVICE void look_from(unsigned byte) { ring_ += byte; }
  template <int kParity, int kSlotBytes>
  FUSED_RNN_DEVICE const unsigned char* begin() const {
    return ring_ + kParity * group_.slot_bytes;
  }
  template <int kOffset>
  FUSED_RNN_DEVICE Pack<4> load(const unsigned char* from) const {
    Pack<4> loaded;
    load_relaxed<kOffset>(loaded, from);
    return loaded;
  }
  template <int kParity>
  FUSED_RNN_DEVICE void turn() {}
  FUSED_RNN_DEVICE void end_run() {}

 private:
  Group group_;
  unsigned char* ring_;
  uint32_t* flags_;
};

}  // namespace
}  // namespace fused_rnn::cuda
