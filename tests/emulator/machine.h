// What a launched grid consists of. One Thread stands for one CUDA thread, and runs on a fiber or on an OS thread.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "error.h"
#include "shared_memory.h"
#ifdef EMULATOR_THREADS
#include "threads.h"
#else
#include "fibers.h"
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline std::ostream& operator<<(std::ostream& out, const dim3& d) {
  return out << "(" << d.x << "," << d.y << "," << d.z << ")";
}

namespace emulator {

constexpr unsigned kWarpSize = 32;

inline int64_t count(const dim3& d) { return int64_t{d.x} * d.y * d.z; }
inline dim3 position(int64_t i, const dim3& d) { return dim3(i % d.x, i / d.x % d.y, i / (int64_t{d.x} * d.y)); }

struct Warp {
  static constexpr size_t kSlot = 32;  // bytes a lane can show to the others

  explicit Warp(unsigned lanes) : lanes(lanes), barrier(lanes, "a warp's barrier") {}

  const unsigned lanes;
  Barrier barrier;
  // What lanes show each other. Two sets: a lane that is one exchange ahead writes to the other one.
  alignas(16) char slots[2][kWarpSize][kSlot];
};

struct Block {
  Block(const dim3& index, int64_t threads, size_t shared_bytes)
      : index(index), barrier(threads, "__syncthreads"), running(threads), shared(shared_bytes) {
    for (int64_t first = 0; first < threads; first += kWarpSize)
      warps.push_back(std::make_unique<Warp>(std::min<int64_t>(kWarpSize, threads - first)));
  }

  const dim3 index;
  Barrier barrier;
  std::atomic<int64_t> running;  // threads that have not ended
  SharedMemory shared;
  std::vector<std::unique_ptr<Warp>> warps;
};

struct Cluster {
  explicit Cluster(int64_t threads) : barrier(threads, "the cluster barrier") {}

  Barrier barrier;
  std::vector<Block*> blocks;  // by rank
};

struct Grid {
  dim3 blocks, threads;
};

struct Thread {
  dim3 index;
  const Grid* grid;
  Cluster* cluster;
  Block* block;
  Warp* warp;
  unsigned lane, rank;         // in the warp; the block's in the cluster
  unsigned exchanges = 0;      // of the warp so far
  unsigned cluster_phase = 0;  // what the last arrival at the cluster barrier waits for
  bool arrived_at_cluster = false;
};

inline Thread& self() { return *running; }

inline std::ostream& operator<<(std::ostream& out, const Thread& t) {
  return out << "thread " << t.index << " of block " << t.block->index;
}

}  // namespace emulator
