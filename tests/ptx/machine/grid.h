// A grid while it runs: blocks in clusters, their warps, and what they share. Sizes are those of sm_90.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "options.h"
#include "program.h"
#include "shared_memory.h"
#include "weak_memory.h"

namespace ptx {

constexpr uint32_t kLanes = 32, kAllLanes = ~0u;

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t{x} * y * z; }
};

struct Launch {
  Dim grid, block;
  uint32_t shared_bytes = 0;  // dynamic
  uint32_t cluster = 1;       // blocks
  bool cooperative = false;
  std::vector<unsigned char> parameters;
};

struct Grid;
struct Block;

struct Cluster {
  std::vector<Block*> blocks;  // by rank
  uint32_t arrived = 0;        // warps, at barrier.cluster
  uint32_t phase = 0;
};

struct Block {
  Grid* grid;
  Dim at;                     // %ctaid
  uint32_t number, rank = 0;  // of the grid's blocks; of the cluster's
  Cluster* cluster;
  std::vector<std::unique_ptr<Warp>> warps;
  uint32_t waiting = 0, alive = 0;  // warps at the barrier; that have not ended
  bool unanimous = true;            // whether all that have come to a bar.red.and say yes
  uint32_t epoch = 1;               // barriers of the block and the cluster that it has passed
  uint64_t published = 0;           // instructions so far that others may wait for
  SharedMemory shared;
  Mbarriers mbarriers;

  Block(Grid& grid, uint32_t number, Cluster& cluster);
  // Whether the next publication gets lost.
  bool falls_silent() { return silence.block == number && published++ >= silence.after; }
};

// Lanes of a warp that are at the same instruction.
struct Fragment {
  uint32_t pc, mask;
  bool waiting;  // for other lanes
};

enum class State : uint8_t { kReady, kAtBarrier, kAtCluster, kDone };

struct Warp {
  Block* block;
  uint32_t number, first_thread;  // of the block
  uint32_t lanes;                 // that exist and have not ended
  char* file = nullptr;           // the registers (registers.h)
  std::vector<char> storage;
  State state = State::kReady;
  bool listed = false;                // among the grid's ready ones
  uint64_t polled_at = ~uint64_t{0};  // the grid's progress when its last turn brought none
  std::vector<Fragment> fragments;
  uint32_t cluster_phase = 0;
  uint32_t vote = kNone;  // where the result of the bar.red that it waits at goes
  bool arrived_at_cluster = false;
  Knowledge knows;            // what its lanes know of shared memory
  std::vector<Clock> clocks;  // of its lanes; weak memory only

  Warp(Block& block, uint32_t number);
  ~Warp();
  Warp(const Warp&) = delete;
  uint32_t thread(uint32_t lane) const { return first_thread + lane; }  // of the block
  uint32_t grid_thread(uint32_t lane) const;
};

// st.async on its way.
struct AsyncStore {
  Block* to;
  uint32_t byte, mbarrier_byte;  // of shared memory
  bool remote;                   // from another block
  uint32_t words, data[4];
  Clock heard;       // Knowledge::heard of the thread that sent it
  uint64_t sent_at;  // Grid::executed
};

struct Grid {
  Module& module;
  Kernel& kernel;
  const Launch& launch;
  std::mt19937 random;
  std::vector<Warp*> ready;  // in the order in which they became so
  std::deque<AsyncStore> on_the_way;
  uint64_t executed = 0;  // instructions; also what %globaltimer counts, in nanoseconds
  uint64_t progress = 0;  // stores, arrivals and the like: what someone may be waiting for
  uint64_t executed_at_progress = 0;
  WeakMemory weak;
  // Of a cooperative launch, at first zeros: in it cooperative groups count who has come. 10.27: %envreg1, %envreg2.
  std::unique_ptr<void, void (*)(void*)> workspace;

  Grid(Module& module, Kernel& kernel, const Launch& launch);
  void note_progress() {
    ++progress;
    executed_at_progress = executed;
  }
};

struct Totals {
  uint64_t launches = 0, instructions = 0;
  uint64_t stale = 0;  // loads that saw an older value than the last one
};
extern Totals totals;

// Runs all of a grid, to its end. Throws what went wrong.
void run(Module& module, Kernel& kernel, const Launch& launch);

// Throws, saying where: the PTX and the source line, block, warp and kernel.
[[noreturn]] void fail_at(const Warp&, const Instruction&, const std::string& what);

}  // namespace ptx
