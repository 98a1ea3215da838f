// Which kernel runs a pass, and how its work is divided. `select` is a pure function of the task and a few numbers that
// describe the GPU, so tests can ask it about any GPU. No CUDA here.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/dispatch.h"
#include "core/engine_names.h"
#include "cuda/device/scope.h"
#include "cuda/device/watch.h"

namespace fused_rnn::cuda {

// How the blocks that hold one copy of the weights exchange what they compute (exchange.cuh).
enum class Blocks : int { kOne, kCluster, kPolling, kFlags };
constexpr const char* name_of(Blocks blocks) { return kEngines[kFirstOfBlocks + static_cast<int>(blocks)]; }

enum class Direction : int { kForward, kBackward };

constexpr int kMostClusterBlocks = 16;  // of any GPU
// Of a group that exchanges through global memory; no GPU has more multiprocessors. Kernels are compiled for layers up
// to what fits in so many blocks.
constexpr int kMostGroupBlocks = 192;

constexpr int64_t number_bytes(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2; }

struct Gpu {
  int capability;  // 90: sm_90
  int multiprocessors;
  int64_t shared_bytes;  // limit of a block
  int most_cluster_blocks;
};

// How a block of the persistent kernel divides its weights among warps: `warps_m` along rows, `warps_k` along K. A warp
// has 16 * `tiles_m` rows, and along K 32 * `held` in registers and 32 * `parked` in shared memory. The batch tile is
// 8 * `tiles_n` columns.
struct Tiles {
  int warps_m, warps_k, tiles_m, held, parked, tiles_n;

  constexpr bool operator==(const Tiles&) const = default;
  constexpr int rows() const { return 16 * tiles_m * warps_m; }
  constexpr int depth() const { return 32 * warps_k * (held + parked); }
  constexpr int columns() const { return 8 * tiles_n; }
  constexpr int threads() const { return 32 * warps_m * warps_k; }
  // Units of a block: limited by its rows of weights, and by two cells a thread, whose state is in registers.
  constexpr int most_units(int rows_of_unit) const {
    const int by_rows = rows() / rows_of_unit / 4 * 4, by_cells = 2 * threads() / columns() / 4 * 4;
    return by_rows < by_cells ? by_rows : by_cells;
  }
};

struct Shape {
  Dtype format;
  Direction direction;
  Blocks blocks;
  Tiles tiles;
  bool tf32 = false;  // operands rounded to TF32, for tensor cores

  constexpr bool operator==(const Shape&) const = default;
  constexpr bool tensor_cores() const { return format == Dtype::kHalf || tf32; }
  // How much of K is read, for a slot with this many published values (warp_weights.cuh).
  constexpr int64_t depth_read(int64_t published) const {
    const int64_t at_once = int64_t{32} * tiles.warps_k;
    return tensor_cores() ? tiles.depth() : (published + at_once - 1) / at_once * at_once;
  }
  // Shared memory of a block: the ring of slots and its mbarriers, if in shared memory; two buffers of sums; parked
  // weights; without tensor cores, if the ring is in global memory, a staging chunk for each warp.
  constexpr int64_t shared_bytes() const {
    const bool ring_is_shared = blocks == Blocks::kCluster || blocks == Blocks::kOne;
    const int64_t number = number_bytes(format), chunks = number * 32 * tiles.warps_k;
    const int64_t ring = ring_is_shared ? 2 * number * tiles.depth() * tiles.columns() : 0;
    const int64_t mbarriers = blocks == Blocks::kCluster ? 128 : 0;
    const int64_t sums = 2 * std::max<int64_t>(number, 4) * tiles.warps_k * tiles.columns() * tiles.rows();
    const int64_t staging = ring_is_shared || tensor_cores() ? 0 : chunks * tiles.warps_m * tiles.columns();
    return mbarriers + ring + sums + chunks * tiles.rows() * tiles.parked + staging;
  }
  // Registers that hold weights, of a thread's 255.
  constexpr int weight_registers() const {
    return static_cast<int>(tiles.held * tiles.tiles_m * 16 * number_bytes(format) / 4);
  }
};

// Every shape that is compiled; Half stands for both 16-bit formats. `select` takes the cheapest one that fits.
// `make cuda-check` shows registers, and fails on spills.
inline constexpr Shape kShapes[] = {
    {Dtype::kHalf, Direction::kForward, Blocks::kOne, {8, 1, 2, 2, 0, 1}},
    {Dtype::kHalf, Direction::kForward, Blocks::kCluster, {4, 2, 2, 2, 0, 1}},
    {Dtype::kHalf, Direction::kForward, Blocks::kCluster, {4, 2, 2, 4, 0, 1}},
    {Dtype::kHalf, Direction::kForward, Blocks::kCluster, {4, 2, 2, 8, 0, 1}},
    {Dtype::kHalf, Direction::kForward, Blocks::kPolling, {1, 8, 2, 4, 0, 1}},
    {Dtype::kHalf, Direction::kForward, Blocks::kPolling, {1, 8, 2, 4, 0, 4}},
    {Dtype::kHalf, Direction::kForward, Blocks::kPolling, {1, 8, 3, 6, 0, 1}},
    {Dtype::kHalf, Direction::kForward, Blocks::kPolling, {1, 8, 4, 4, 4, 1}},
    {Dtype::kHalf, Direction::kBackward, Blocks::kOne, {4, 2, 1, 4, 0, 1}},
    {Dtype::kHalf, Direction::kBackward, Blocks::kCluster, {1, 8, 2, 2, 0, 1}},
    {Dtype::kHalf, Direction::kBackward, Blocks::kCluster, {1, 8, 2, 4, 0, 1}},
    {Dtype::kHalf, Direction::kBackward, Blocks::kCluster, {1, 8, 2, 8, 0, 1}},
    {Dtype::kHalf, Direction::kBackward, Blocks::kPolling, {1, 8, 1, 8, 0, 1}},
    {Dtype::kHalf, Direction::kBackward, Blocks::kPolling, {1, 8, 1, 16, 0, 1}},
    {Dtype::kFloat, Direction::kForward, Blocks::kOne, {8, 1, 2, 2, 0, 1}},
    {Dtype::kFloat, Direction::kForward, Blocks::kCluster, {2, 4, 2, 2, 0, 1}},
    {Dtype::kFloat, Direction::kForward, Blocks::kPolling, {1, 8, 1, 4, 2, 1}},
    {Dtype::kFloat, Direction::kForward, Blocks::kPolling, {1, 8, 2, 1, 3, 1}},
    {Dtype::kFloat, Direction::kForward, Blocks::kPolling, {1, 8, 3, 1, 4, 1}},
    {Dtype::kFloat, Direction::kForward, Blocks::kFlags, {1, 8, 1, 4, 2, 1}},
    {Dtype::kFloat, Direction::kBackward, Blocks::kOne, {4, 2, 1, 4, 0, 1}},
    {Dtype::kFloat, Direction::kBackward, Blocks::kCluster, {1, 8, 1, 4, 0, 1}},
    {Dtype::kFloat, Direction::kBackward, Blocks::kPolling, {1, 8, 1, 4, 0, 1}},
    {Dtype::kFloat, Direction::kBackward, Blocks::kPolling, {1, 8, 1, 5, 13, 1}},
    {Dtype::kFloat, Direction::kBackward, Blocks::kFlags, {1, 8, 1, 4, 2, 1}},
    {Dtype::kFloat, Direction::kForward, Blocks::kCluster, {4, 2, 2, 2, 0, 1}, true},
    {Dtype::kFloat, Direction::kForward, Blocks::kPolling, {1, 8, 2, 4, 0, 1}, true},
    {Dtype::kFloat, Direction::kForward, Blocks::kPolling, {1, 8, 3, 2, 4, 1}, true},
    {Dtype::kFloat, Direction::kBackward, Blocks::kCluster, {1, 8, 1, 4, 0, 1}, true},
    {Dtype::kFloat, Direction::kBackward, Blocks::kPolling, {1, 8, 1, 8, 0, 1}, true},
    {Dtype::kFloat, Direction::kBackward, Blocks::kPolling, {1, 8, 1, 8, 11, 1}, true},
    {Dtype::kDouble, Direction::kForward, Blocks::kOne, {8, 1, 1, 1, 1, 1}},
    {Dtype::kDouble, Direction::kForward, Blocks::kCluster, {2, 4, 2, 0, 2, 1}},
    {Dtype::kDouble, Direction::kForward, Blocks::kFlags, {1, 8, 1, 1, 5, 1}},
    {Dtype::kDouble, Direction::kBackward, Blocks::kOne, {4, 2, 1, 1, 3, 1}},
    {Dtype::kDouble, Direction::kBackward, Blocks::kCluster, {1, 8, 1, 2, 2, 1}},
    {Dtype::kDouble, Direction::kBackward, Blocks::kFlags, {1, 8, 1, 2, 6, 1}},
};

// The shape as compiled for cells with this many gates: no deeper than the widest layer needs.
constexpr Shape for_gates(Shape shape, int gates) {
  constexpr int kMostBlocks[] = {1, kMostClusterBlocks, kMostGroupBlocks, kMostGroupBlocks};
  const bool forward = shape.direction == Direction::kForward;
  Tiles& tiles = shape.tiles;
  const int units = tiles.most_units(forward ? gates : 1) * kMostBlocks[static_cast<int>(shape.blocks)];
  const int depth = (forward ? 1 : gates) * units, at_once = 32 * tiles.warps_k;
  const int chunks = std::min(tiles.held + tiles.parked, (depth + at_once - 1) / at_once);
  tiles.held = std::min(tiles.held, chunks);
  tiles.parked = chunks - tiles.held;
  return shape;
}
// Whether this shape is compiled for cells with this many gates: not if an earlier one comes out the same.
constexpr bool is_distinct(size_t number, int gates) {
  for (size_t i = 0; i < number; ++i)
    if (for_gates(kShapes[i], gates) == for_gates(kShapes[number], gates)) return false;
  return true;
}

struct Plan {
  std::optional<Shape> shape;                   // none: stepwise
  size_t number = 0;                            // index in kShapes; `shape` is for_gates of that
  int units = 0, blocks = 0;                    // of a block; of a group
  int depth = 0;                                // of a slot
  int columns = 0, groups = 0;                  // of a group; of a problem
  int groups_at_once = 0;                       // in one launch
  AcquireScope scope = AcquireScope::kCluster;  // of a cluster's waits
  std::string why;
};

// How a launch's work is divided, as a kernel parameter.
struct Partition {
  int units;        // of a block; a multiple of 4
  int blocks;       // of a group
  int depth;        // of a slot
  int columns;      // of a group; a problem's last group may have fewer
  int groups;       // of a problem
  int first_group;  // of this launch, among the groups of all problems
  int first_step, end_step;
  AcquireScope scope;   // of a cluster's waits
  const void* weights;  // packed (pack_weights.cuh)
  unsigned char* ring;
  uint32_t* flags;
  Watch watch;
};

struct Task {
  int64_t cell;
  Dtype dtype;
  Direction direction;
  int64_t problems, batch, hidden;
  bool tf32;             // float32 may be rounded to TF32
  const char* obstacle;  // why only the stepwise engine can run it, or null
};

constexpr const char* kOwnObstacle = "cells of your own have no persistent kernel";

// What a layer may have that only the stepwise engine runs.
struct StepwiseOptions {
  bool projection, recurrent_dropout, zoneout, layer_norm;
};
constexpr const char* obstacle_of(const StepwiseOptions& options) {
  if (options.projection) return "a projection has a product of its own in every step";
  if (options.recurrent_dropout) return "persistent kernels have no recurrent_dropout";
  if (options.zoneout) return "persistent kernels have no zoneout";
  if (options.layer_norm) return "persistent kernels have no layer_norm";
  return nullptr;
}

Gpu gpu_of(int32_t device);

// torch.backends.cuda.matmul.allow_tf32
bool tf32_allowed();

// The engine that was set, otherwise FUSED_RNN_ENGINE, or by its former name FUSED_RNN_CUDA_ENGINE, otherwise auto.
const char* engine_wanted();
// Sets the engine by its number; -1: none. Returns the previous value.
int set_engine_wanted(int number);

// FUSED_RNN_CUDA_MBARRIER_SCOPE: cluster (default) or cta. Throws for anything else.
AcquireScope scope_wanted();

// The fastest engine of ours for a size, verified and timed on this model of GPU.
struct Measured {
  int64_t cell;
  Dtype dtype;
  Direction direction;
  int64_t problems, batch, hidden;
  bool tf32;
  int engine;  // its index in kEngines: stepwise, or a kind of groups
};
using MeasuredTable = std::vector<Measured>;

// The entry for this task: of the nearest size, at most twice or half as large; null if there is none.
const Measured* find_measured(const MeasuredTable& table, const Task& task);

// The table of a GPU, by its index; empty until it was set.
std::shared_ptr<const MeasuredTable> measured_on(int32_t device);
void set_measured(int32_t device, MeasuredTable table);

// `wanted`: one of kEngines. persistent: any kind of group; best: whichever is estimated to be fastest; ours, auto and
// torch: what has been measured for such a size, else stepwise. Throws if that engine cannot run the task.
Plan select(const Task& task, const Gpu& gpu, const std::string& wanted, const MeasuredTable& measured = {});

}  // namespace fused_rnn::cuda
