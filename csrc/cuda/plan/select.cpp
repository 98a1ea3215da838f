#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>

#include "core/engine_names.h"
#include "core/fail.h"
#include "core/registry.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Dtype format_of(Dtype dtype) { return dtype == Dtype::kBFloat16 ? Dtype::kHalf : dtype; }

// Estimated microseconds of a step, not yet measured; only the ranking matters.
double step_cost(const Plan& plan) {
  constexpr double kExchange[] = {0.1, 0.3, 0.5, 1.0};  // by Blocks
  const Tiles& tiles = plan.shape->tiles;
  // A chunk: 16 rows x 32 of K x 8 columns by each of 8 warps, 32768 multiply-adds of a multiprocessor, which does 128
  // a cycle without tensor cores, or 64 in double.
  const double without_tensor_cores = plan.shape->format == Dtype::kFloat ? 0.14 : 0.28;
  const double chunk_cost = plan.shape->tf32 ? 0.04 : plan.shape->tensor_cores() ? 0.02 : without_tensor_cores;
  const int chunks = plan.depth / (32 * tiles.warps_k), parked = std::max(chunks - tiles.held, 0);
  const double work = tiles.tiles_m * (chunk_cost * chunks + 0.02 * parked) * tiles.tiles_n;
  return kExchange[static_cast<int>(plan.shape->blocks)] + 0.2 + 0.1 * tiles.tiles_n + work;
}

// Estimated microseconds of a step: one product and one kernel.
double stepwise_cost(const Task& task, int64_t gates) {
  const double numbers = double(gates) * task.hidden * task.hidden * task.problems;
  const double products = number_bytes(task.dtype) == 2 ? 3e8 : 4e7;
  return 6 + numbers * 4 / 3e6 + numbers * task.batch * 2 / products;
}

int most_blocks(Blocks blocks, const Gpu& gpu) {
  switch (blocks) {
    case Blocks::kOne:
      return 1;
    case Blocks::kCluster:
      return gpu.most_cluster_blocks;
    default:
      return std::min(gpu.multiprocessors, kMostGroupBlocks);
  }
}

// The plan with this shape, if it fits.
std::optional<Plan> fit(size_t number, const Task& task, const Gpu& gpu, const CellTraits& cell) {
  const int gates = static_cast<int>(cell.gates);
  const Shape shape = for_gates(kShapes[number], gates);
  const Tiles& tiles = shape.tiles;
  const bool forward = task.direction == Direction::kForward;
  // Per unit: rows of weights, and published values.
  const int64_t rows = forward ? cell.gates : 1, published = forward ? 1 : cell.gates;
  if (shape.format != format_of(task.dtype) || shape.direction != task.direction) return {};
  if (!is_distinct(number, gates)) return {};
  if (shape.blocks == Blocks::kCluster && gpu.capability < 90) return {};
  if (shape.tf32 && !task.tf32) return {};
  if (shape.tensor_cores() && gpu.capability < 80) return {};  // older tensor cores have neither bfloat16 nor TF32
  if (shape.shared_bytes() > gpu.shared_bytes) return {};
  const int64_t most = tiles.most_units(static_cast<int>(rows));
  if (most == 0) return {};
  Plan plan;
  plan.shape = shape;
  plan.number = number;
  // The fewest blocks, evenly filled; more if rounding units up to a multiple of 4 exceeds the depth.
  for (plan.blocks = static_cast<int>(ceil_div(task.hidden, most));; ++plan.blocks) {
    if (plan.blocks > most_blocks(shape.blocks, gpu)) return {};
    plan.units = static_cast<int>(ceil_div(ceil_div(task.hidden, plan.blocks), 4) * 4);
    if (ceil_div(task.hidden, plan.units) < plan.blocks) continue;
    if (published * plan.units * plan.blocks <= tiles.depth()) break;
  }
  plan.depth = static_cast<int>(shape.depth_read(published * plan.units * plan.blocks));
  const int64_t all = gpu.multiprocessors / plan.blocks;  // resident groups, with one block a multiprocessor
  // As many groups as fit, so that each has few columns.
  const int64_t least = ceil_div(task.batch, tiles.columns());
  plan.groups = static_cast<int>(std::clamp<int64_t>(all / std::max<int64_t>(task.problems, 1), least,
                                                     std::max<int64_t>(least, ceil_div(task.batch, 8))));
  plan.columns = static_cast<int>(ceil_div(task.batch, plan.groups));
  plan.groups = static_cast<int>(ceil_div(task.batch, plan.columns));
  plan.groups_at_once =
      static_cast<int>(std::clamp<int64_t>(all, 1, std::max<int64_t>(task.problems * plan.groups, 1)));
  return plan;
}

double cost_of(const Plan& plan, const Task& task) {
  const double launches = ceil_div(task.problems * plan.groups, plan.groups_at_once);
  return launches * step_cost(plan);
}

}  // namespace

namespace {

std::atomic<int> engine_set = -1;  // not thread-local: backward passes run in autograd's threads

}  // namespace

int set_engine_wanted(int number) {
  return engine_set.exchange(0 <= number && number < static_cast<int>(std::size(kEngines)) ? number : -1);
}

// The persistent kernel must be requested until it has been run on a GPU.
const char* engine_wanted() {
  if (const int set = engine_set; set >= 0) return kEngines[set];
  for (const char* variable : {"FUSED_RNN_ENGINE", "FUSED_RNN_CUDA_ENGINE"})
    if (const char* wanted = std::getenv(variable); wanted && *wanted) return wanted;
  return "auto";
}

AcquireScope scope_wanted() {
  const char* const variable = std::getenv("FUSED_RNN_CUDA_MBARRIER_SCOPE");
  const std::string wanted = variable && *variable ? variable : "cluster";
  FUSED_RNN_CHECK(wanted == "cluster" || wanted == "cta",
                  "fused_rnn: FUSED_RNN_CUDA_MBARRIER_SCOPE must be cluster or cta, got '", wanted, "'");
  return wanted == "cta" ? AcquireScope::kBlock : AcquireScope::kCluster;
}

namespace {

constexpr int kBest = kCudaEngines - 1;

int number_of(const std::string& wanted) {
  const auto number = std::find(std::begin(kEngines), std::end(kEngines), wanted) - std::begin(kEngines);
  if (number == std::ssize(kEngines)) {
    std::string known;
    for (const char* name : kEngines) known += (known.empty() ? "" : ", ") + std::string(name);
    fail("fused_rnn: the engine must be one of ", known, ", got '", wanted, "'");
  }
  return static_cast<int>(number);
}

// The cheapest plan whose kind of groups is `number`, or any kind; otherwise none, and `why`.
Plan select_persistent(const Task& task, const Gpu& gpu, int number) {
  Plan none;
  const char* const obstacle = is_own(task.cell) ? kOwnObstacle : task.obstacle;
  if (none.why = obstacle ? obstacle : "the layer has no recurrent product, or is empty"; obstacle) return none;
  const CellTraits cell = traits_of(task.cell);
  if (!cell.recurrent || task.batch <= 0 || task.hidden <= 0) return none;
  std::optional<Plan> best;
  for (size_t shape = 0; shape < std::size(kShapes); ++shape) {
    if (number >= kFirstOfBlocks && number != kBest && std::string(kEngines[number]) != name_of(kShapes[shape].blocks))
      continue;
    const std::optional<Plan> plan = fit(shape, task, gpu, cell);
    if (plan && (!best || cost_of(*plan, task) < cost_of(*best, task))) best = plan;
  }
  if (best) return *best;
  none.why = "no shape of the persistent kernel fits this dtype and width";
  return none;
}

Plan stepwise_as(std::string why) {
  Plan plan;
  plan.why = std::move(why);
  return plan;
}

Plan select_measured(const Task& task, const Gpu& gpu, const MeasuredTable& table) {
  if (is_own(task.cell)) return stepwise_as(kOwnObstacle);
  const Measured* const entry = find_measured(table, task);
  if (!entry) return stepwise_as("no other engine of ours has been measured for such a size");
  if (entry->engine < kFirstOfBlocks) return stepwise_as("it was measured to be the fastest of ours for such a size");
  Plan plan = select_persistent(task, gpu, entry->engine);
  if (plan.shape) plan.why = "it was measured to be the fastest of ours for such a size";
  return plan;
}

}  // namespace

Plan select(const Task& task, const Gpu& gpu, const std::string& wanted, const MeasuredTable& measured) {
  const int number = number_of(wanted);
  if (number >= kCudaEngines) return select_measured(task, gpu, measured);
  if (wanted == "stepwise") return stepwise_as("it was asked for");
  Plan plan = select_persistent(task, gpu, number);
  if (number != kBest) {
    FUSED_RNN_CHECK(plan.shape, "fused_rnn: the engine '", wanted, "' was asked for, but ", plan.why);
    plan.why = "it was asked for";
    return plan;
  }
  if (!plan.shape) return plan;
  if (stepwise_cost(task, traits_of(task.cell).gates) < cost_of(plan, task))
    return stepwise_as("it is estimated to be faster for this size");
  plan.why = "the weights stay on the chip for the whole sequence";
  return plan;
}

}  // namespace fused_rnn::cuda
