// Launching a kernel on the emulator: it has run when launch returns.
#pragma once
#include <algorithm>
#include <numeric>
#include <random>

#include "machine.h"

namespace emulator {

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool cooperative = false;  // all blocks are there at the same time
  unsigned cluster = 1;      // blocks in a cluster
};

// What a GPU refuses too; the limits are Hopper's.
inline void check(const Launch& launch) {
  constexpr unsigned kMostY = 65535;
  if (count(launch.grid) < 1 || count(launch.block) < 1)
    fail("a launch of nothing: grid ", launch.grid, ", block ", launch.block);
  if (launch.grid.x > 0x7fffffffu || launch.grid.y > kMostY || launch.grid.z > kMostY) fail("a grid of ", launch.grid);
  if (count(launch.block) > 1024 || launch.block.z > 64) fail("a block of ", launch.block, " threads");
  if (launch.shared_bytes > 227 * 1024) fail(launch.shared_bytes, " bytes of shared memory for a block");
  if (launch.cluster < 1 || launch.cluster > 16 || launch.grid.x % launch.cluster)
    fail("clusters of ", launch.cluster, " blocks in a grid of ", launch.grid);
}

// Runs the blocks of ranks first .. first + blocks - 1, which are there together.
template <class Body>
void run_blocks(const Launch& launch, const Grid& grid, int64_t first, int64_t blocks, const Body& body) {
  const int64_t threads = count(launch.block);
  std::vector<std::unique_ptr<Block>> all;
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<Thread> each;
  each.reserve(blocks * threads);
  Scheduler scheduler(
      [&body] {
        Block& block = *self().block;
        body();
        if (--block.running == 0) block.shared.check();
      },
      schedule);
  for (int64_t b = 0; b < blocks; ++b) {
    all.push_back(std::make_unique<Block>(position(first + b, launch.grid), threads, launch.shared_bytes));
    if (b % launch.cluster == 0) clusters.push_back(std::make_unique<Cluster>(launch.cluster * threads));
    Cluster& cluster = *clusters.back();
    cluster.blocks.push_back(all.back().get());
    for (int64_t t = 0; t < threads; ++t) {
      const int64_t warp = t / kWarpSize;
      each.push_back({position(t, launch.block), &grid, &cluster, all.back().get(), all.back()->warps[warp].get(),
                      static_cast<unsigned>(t % kWarpSize), static_cast<unsigned>(b % launch.cluster)});
      scheduler.add(&each.back(), b, b * (threads / kWarpSize + 1) + warp);
    }
  }
  scheduler.run();
}

// Blocks that need not be there together run one after another, in an order that the schedule says.
template <class Body>
void run(const Launch& launch, const Body& body) {
  check(launch);
  const Grid grid = {launch.grid, launch.block};
  const int64_t blocks = count(launch.grid), together = launch.cooperative ? blocks : launch.cluster;
  std::vector<int64_t> order(blocks / together);
  std::iota(order.begin(), order.end(), 0);
  if (schedule.order() == Order::kReverse) std::reverse(order.begin(), order.end());
  if (schedule.order() > Order::kReverse) std::shuffle(order.begin(), order.end(), std::mt19937(schedule.seed));
  for (int64_t i : order) run_blocks(launch, grid, i * together, together, body);
}

}  // namespace emulator
