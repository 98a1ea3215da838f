// A cluster of blocks: its barrier, each other's shared memory, and mbarriers, which count bytes that are on their way.
#pragma once
#include <cstdint>
#include <cstring>

#include "machine.h"
#include "words.h"

namespace emulator {

inline void cluster_arrive(const Place& place) {
  Thread& thread = self();
  if (thread.arrived_at_cluster) fail(thread, " arrives at the cluster barrier twice without a wait, at ", place);
  thread.arrived_at_cluster = true;
  thread.cluster_phase = thread.cluster->barrier.arrive(place);
}
inline void cluster_wait(const Place& place) {
  Thread& thread = self();
  if (!thread.arrived_at_cluster) fail(thread, " waits for the cluster barrier without having arrived, at ", place);
  thread.arrived_at_cluster = false;
  thread.cluster->barrier.wait(thread.cluster_phase, place);
}

// An address in the shared memory of some block of the cluster.
struct RemoteAddress {
  Block* block;
  unsigned char* address;
};

inline RemoteAddress map_remote(const void* own, unsigned rank) {
  const Thread& thread = self();
  if (rank >= thread.cluster->blocks.size())
    fail(thread, " maps shared memory of rank ", rank, " in a cluster of ", thread.cluster->blocks.size());
  if (!thread.block->shared.holds(own, 0)) fail(thread, " maps what is not its block's shared memory");
  Block* const block = thread.cluster->blocks[rank];
  return {block, block->shared.begin() + (static_cast<const unsigned char*>(own) - thread.block->shared.begin())};
}

// The place itself, when `size` bytes are there and the block still is.
inline void* reach(const RemoteAddress& to, size_t size) {
  if (!to.block->shared.holds(to.address, size))
    fail(self(), " reaches ", to.address - to.block->shared.begin(), " bytes into shared memory of ",
         to.block->shared.bytes(), " bytes, for ", size);
  if (to.block->running == 0) fail(self(), " reaches into the shared memory of a block that has ended");
  return to.address;
}

// The 64 bits of an mbarrier. A phase is complete when all have arrived and all announced bytes have come.
class Mbarrier {
 public:
  // Arrivals and bytes still to come, arrivals of every phase, and the number of the phase.
  struct State {
    int32_t bytes;
    uint8_t arrivals, each_phase;
    uint16_t phase;
  };
  static_assert(sizeof(State) == sizeof(uint64_t));

  explicit Mbarrier(void* word) : word_(static_cast<uint64_t*>(word)) {}

  void init(unsigned arrivals) {
    store(State{0, static_cast<uint8_t>(arrivals), static_cast<uint8_t>(arrivals), 0});
    progress();
  }
  void change(int32_t bytes, int arrivals) {
    uint64_t before = __atomic_load_n(word_, __ATOMIC_RELAXED);
    for (uint64_t after;;) {
      State state = read(before);
      if (arrivals > state.arrivals) fail("more arrivals at an mbarrier than it was made for");
      state.bytes += bytes;
      state.arrivals -= arrivals;
      if (state.bytes == 0 && state.arrivals == 0)
        state = State{0, state.each_phase, state.each_phase, uint16_t(state.phase ^ 1)};
      std::memcpy(&after, &state, sizeof after);
      if (__atomic_compare_exchange_n(word_, &before, after, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) break;
    }
    progress();
  }
  // Is the phase of this parity complete?
  bool is_complete(unsigned parity) const { return read(__atomic_load_n(word_, __ATOMIC_ACQUIRE)).phase != parity; }

 private:
  static State read(uint64_t word) {
    if (word == ~uint64_t{0}) fail("an mbarrier is used before it was initialized");
    State state;
    std::memcpy(&state, &word, sizeof state);
    return state;
  }
  void store(const State& state) {
    uint64_t word;
    std::memcpy(&word, &state, sizeof word);
    __atomic_store_n(word_, word, __ATOMIC_RELEASE);
  }

  uint64_t* word_;
};

// Copies `value` there some time later, and tells the mbarrier beside it.
template <class T>
void store_async(const RemoteAddress& to, const RemoteAddress& mbarrier, const T& value) {
  reach(to, sizeof value);
  reach(mbarrier, sizeof(uint64_t));
  defer([=] {
    std::memcpy(reach(to, sizeof value), &value, sizeof value);
    Mbarrier(reach(mbarrier, sizeof(uint64_t))).change(-int32_t{sizeof value}, 0);
  });
}

}  // namespace emulator
