// Which kernel computes a pass, and how its work is cut. Chosen by `select`, a pure function: it knows the GPU by a few
// numbers, so a test can ask it about any. No CUDA here.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "../dispatch.h"

namespace fused_rnn {

// How the blocks that hold one copy of the weights exchange what they compute (exchange.cuh).
enum class Blocks : int { kOne, kCluster, kPolling, kFlags };

enum class Direction : int { kForward, kBackward };

struct Gpu {
  int capability;  // 90: sm_90
  int multiprocessors;
  int64_t shared_bytes;  // that a block may have
  int most_cluster_blocks;
};

// A shape of the persistent kernel (persistent.cuh's Tiling): so many warps share out rows and depth of a block's
// weights; each has `tiles_m` times 16 rows, and of the depth `held` times 32 in registers and `parked` in shared
// memory; `tiles_n` times 8 columns of the batch.
struct Tiles {
  int warps_m, warps_k, tiles_m, held, parked, tiles_n;

  constexpr int rows() const { return 16 * tiles_m * warps_m; }
  constexpr int depth() const { return 32 * warps_k * (held + parked); }
  constexpr int columns() const { return 8 * tiles_n; }
  constexpr int threads() const { return 32 * warps_m * warps_k; }
};

// Every shape that is compiled: X(number, format, direction, blocks, warps_m, warps_k, tiles_m, held, parked, tiles_n).
// Half stands for both 16-bit formats. What compiles without spilling, and how many registers it takes, `make
// cuda-check` says. Of those that fit a layer `select` takes the cheapest.
#define FUSED_RNN_SHAPES(X)                            \
  X(0, kHalf, kForward, kOne, 8, 1, 2, 2, 0, 1)        \
  X(1, kHalf, kForward, kCluster, 4, 2, 2, 2, 0, 1)    \
  X(2, kHalf, kForward, kCluster, 4, 2, 2, 4, 0, 1)    \
  X(3, kHalf, kForward, kCluster, 4, 2, 2, 8, 0, 1)    \
  X(4, kHalf, kForward, kPolling, 1, 8, 2, 4, 0, 1)    \
  X(5, kHalf, kForward, kPolling, 1, 8, 2, 4, 0, 4)    \
  X(6, kHalf, kForward, kPolling, 1, 8, 3, 6, 0, 1)    \
  X(7, kHalf, kForward, kPolling, 1, 8, 4, 4, 4, 1)    \
  X(8, kHalf, kBackward, kOne, 4, 2, 1, 4, 0, 1)       \
  X(9, kHalf, kBackward, kCluster, 1, 8, 2, 2, 0, 1)   \
  X(10, kHalf, kBackward, kCluster, 1, 8, 2, 4, 0, 1)  \
  X(11, kHalf, kBackward, kCluster, 1, 8, 2, 8, 0, 1)  \
  X(12, kHalf, kBackward, kPolling, 1, 8, 1, 8, 0, 1)  \
  X(13, kHalf, kBackward, kPolling, 1, 8, 1, 16, 0, 1) \
  X(14, kFloat, kForward, kOne, 8, 1, 2, 2, 0, 1)      \
  X(15, kFloat, kForward, kCluster, 2, 4, 2, 1, 0, 1)  \
  X(16, kFloat, kForward, kCluster, 2, 4, 2, 2, 0, 1)  \
  X(17, kFloat, kForward, kPolling, 1, 8, 1, 2, 0, 1)  \
  X(18, kFloat, kForward, kFlags, 1, 8, 1, 2, 0, 1)    \
  X(19, kFloat, kBackward, kOne, 4, 2, 1, 4, 0, 1)     \
  X(20, kFloat, kBackward, kCluster, 1, 8, 1, 2, 0, 1) \
  X(21, kFloat, kBackward, kCluster, 1, 8, 1, 4, 0, 1) \
  X(22, kFloat, kBackward, kPolling, 1, 8, 1, 2, 0, 1) \
  X(23, kFloat, kBackward, kFlags, 1, 8, 1, 3, 0, 1)

// Units that a block may have: as many as its rows of weights allow, and two cells for a thread at most, as their state
// is in registers.
constexpr int most_units(int rows, int rows_of_unit, int threads, int columns) {
  const int by_rows = rows / rows_of_unit / 4 * 4, by_cells = 2 * threads / columns / 4 * 4;
  return by_rows < by_cells ? by_rows : by_cells;
}

struct Shape {
  int number;
  Dtype format;
  Direction direction;
  Blocks blocks;
  Tiles tiles;
};

#define FUSED_RNN_SHAPE(number, format, direction, blocks, m, k, of_m, held, parked, of_n) \
  {number, Dtype::format, Direction::direction, Blocks::blocks, {m, k, of_m, held, parked, of_n}},
constexpr Shape kShapes[] = {FUSED_RNN_SHAPES(FUSED_RNN_SHAPE)};
#undef FUSED_RNN_SHAPE

struct Plan {
  const Shape* shape = nullptr;  // null: stepwise
  int units = 0, blocks = 0;     // of a block; of a group
  int columns = 0, groups = 0;   // of a group; of a problem
  int groups_at_once = 0;        // that a launch may have
  std::string why;
};

// How a launch's work is cut, for the kernel.
struct Cut {
  int units;        // of a block; a multiple of 4
  int blocks;       // of a group
  int columns;      // of a group; the last one of a problem may have fewer
  int groups;       // of a problem
  int first_group;  // that this launch begins with, of all problems'
  int first_step, end_step;
  unsigned char* ring;
  uint32_t* flags;
};

// What a plan depends on.
struct Task {
  int64_t cell;
  Dtype dtype;
  Direction direction;
  int64_t problems, batch, hidden;
  const char* obstacle;  // what is asked for that only the stepwise engine does; null: nothing
};

constexpr const char* kProjectionObstacle = "a projection has a product of its own in every step";

// `wanted`: stepwise, persistent, or the persistent kernel with one, cluster, polling or flags; best: whichever is
// estimated to be fastest. Throws when it cannot be had.
Plan select(const Task& task, const Gpu& gpu, const std::string& wanted);

}  // namespace fused_rnn
