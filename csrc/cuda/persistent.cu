// Every persistent kernel that is compiled: the shapes of plan.h, by cell and dtype.
#include "cuda/persistent.h"

#include <algorithm>

#include "persistent.cuh"
#include "persistent_cells.cuh"

namespace fused_rnn {
namespace {

constexpr int64_t kMostRingBytes = int64_t{64} << 20;

template <Blocks blocks>
struct LinkOf;
template <>
struct LinkOf<Blocks::kOne> {
  using type = OneBlock;
};
template <>
struct LinkOf<Blocks::kCluster> {
  using type = Cluster;
};
template <>
struct LinkOf<Blocks::kPolling> {
  using type = Polling;
};
template <>
struct LinkOf<Blocks::kFlags> {
  using type = Flags;
};

int64_t slot_bytes(const Tiles& tiles, Dtype dtype) {
  return int64_t{tiles.depth()} * tiles.columns() * (dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2);
}

bool has_ring(const Plan& plan) {
  return plan.shape->blocks == Blocks::kPolling || plan.shape->blocks == Blocks::kFlags;
}
int64_t ring_only_bytes(const Plan& plan, Dtype dtype, int64_t steps) {
  const int64_t slots = plan.shape->blocks == Blocks::kPolling ? steps + 1 : 2;
  return has_ring(plan) ? plan.groups_at_once * slots * slot_bytes(plan.shape->tiles, dtype) : 0;
}
int64_t flag_bytes(const Plan& plan) {
  return plan.shape->blocks == Blocks::kFlags ? int64_t{4} * plan.groups_at_once * plan.blocks : 0;
}

template <class Walk, class Link, class Tiling>
void launch_kernel(const Plan& plan, const typename Walk::Args& args, const typename Walk::Arrays& arrays, Cut cut,
                   int64_t groups, void* stream) {
  using Kernel = Persistent<Walk, Link, Tiling>;
  Launch how = {dim3(static_cast<unsigned>(groups * plan.blocks)), dim3(Kernel::kThreads), stream,
                Kernel::kSharedBytes, Link::kCooperative, Link::kCluster ? static_cast<unsigned>(plan.blocks) : 1u};
  launch(how, persistent<Kernel>, args, arrays, cut);
}

// f(Walk's number's kernel) for the plan's shape, where it has the direction and the format of this cell and dtype.
template <template <class, class> class Walk, Direction direction, class Cell, class S, class Args, class Arrays>
void launch_shape(const Plan& plan, const Args& args, const Arrays& arrays, const Cut& cut, int64_t groups,
                  void* stream) {
  constexpr Dtype kFormat = sizeof(S) == 2 ? Dtype::kHalf : sizeof(S) == 4 ? Dtype::kFloat : Dtype::kDouble;
  switch (plan.shape->number) {
#define FUSED_RNN_CASE(number, format, way, blocks, m, k, of_m, held, parked, of_n)                              \
  case number:                                                                                                   \
    if constexpr (Dtype::format == kFormat && Direction::way == direction)                                       \
      return launch_kernel<Walk<Cell, S>, LinkOf<Blocks::blocks>::type, Tiling<m, k, of_m, held, parked, of_n>>( \
          plan, args, arrays, cut, groups, stream);                                                              \
    break;
    FUSED_RNN_SHAPES(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  }
  unknown_value("shape of the persistent kernel", plan.shape->number);
}

template <template <class, class> class Walk, Direction direction, class Args, class Arrays>
void run(const Plan& plan, const Args& args, const Arrays& arrays, int64_t first, int64_t end, void* ring,
         void* stream) {
  const int64_t groups = args.members * args.directions * plan.groups;
  const int64_t bytes = ring_only_bytes(plan, args.dtype, end - first), flags = flag_bytes(plan);
  for (int64_t g = 0; g < groups; g += plan.groups_at_once) {
    if (has_ring(plan))  // all ones: not yet written
      fill_bytes(ring, plan.shape->blocks == Blocks::kPolling ? 0xff : 0, bytes + flags, stream);
    const Cut cut = {plan.units,
                     plan.blocks,
                     plan.columns,
                     plan.groups,
                     static_cast<int>(g),
                     static_cast<int>(first),
                     static_cast<int>(end),
                     static_cast<unsigned char*>(ring),
                     reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(ring) + bytes)};
    dispatch_cell(args.cell, [&](auto c) {
      using Cell = typename decltype(c)::type;
      if constexpr (Cell::kRecurrent)
        dispatch_dtype<BFloat16, Half>(args.dtype, [&](auto s) {
          launch_shape<Walk, direction, Cell, typename decltype(s)::type>(
              plan, args, arrays, cut, std::min<int64_t>(plan.groups_at_once, groups - g), stream);
        });
    });
  }
}

}  // namespace

void launch_persistent(const Plan& plan, const Forward& f, const ForwardArrays& a, int64_t first, int64_t end,
                       void* ring, void* stream) {
  run<ForwardCell, Direction::kForward>(plan, f, a, first, end, ring, stream);
}
void launch_persistent(const Plan& plan, const Backward& g, const BackwardArrays& a, int64_t first, int64_t end,
                       void* ring, void* stream) {
  run<BackwardCell, Direction::kBackward>(plan, g, a, first, end, ring, stream);
}

int64_t ring_bytes(const Plan& plan, Dtype dtype, int64_t steps) {
  return ring_only_bytes(plan, dtype, steps) + flag_bytes(plan);
}
int64_t most_steps(const Plan& plan, Dtype dtype) {
  const int64_t slot = plan.groups_at_once * slot_bytes(plan.shape->tiles, dtype);
  return plan.shape->blocks == Blocks::kPolling ? std::max<int64_t>(1, kMostRingBytes / slot - 1) : INT32_MAX;
}

#ifdef __CUDACC__
Gpu gpu_of(int32_t device) {
  const auto ask = [&](cudaDeviceAttr what) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, what, device), "asking for what the GPU has");
    return value;
  };
  const int capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  return {capability, ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          capability == 90 || capability == 100 ? 16 : 8};
}
#else
Gpu gpu_of(int32_t) { return {90, 132, 227 * 1024, 16}; }
#endif

}  // namespace fused_rnn
