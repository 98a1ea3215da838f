// The instances of the persistent kernel, and their launch: each shape of plan.h and each cell, for the dtype and
// direction of the generated .cu file that includes this (setup.py; separate files compile in parallel).
#pragma once
#include <iterator>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda/persistent/cells.cuh"
#include "cuda/persistent/kernel.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/persistent/pack_weights.cuh"

namespace fused_rnn::cuda {
namespace {

// In the order of Blocks.
template <Blocks blocks>
using LinkOf = std::tuple_element_t<static_cast<int>(blocks), std::tuple<OneBlock, Cluster, Polling, Flags>>;

// The dtype under which kShapes lists S.
template <class S>
constexpr Dtype kFormatOf = sizeof(S) == 8   ? Dtype::kDouble
                            : sizeof(S) == 4 ? Dtype::kFloat
                                             : Dtype::kHalf;

template <class S, bool tensor_cores, int kTilesN>
using ProductsOf = std::conditional_t<!tensor_cores, Scalars<S, kTilesN>,
                                      std::conditional_t<sizeof(S) == 2, TensorCores<S, kTilesN>, Tf32<S, kTilesN>>>;

// Launches the kernel if this is the plan's shape; returns whether it did. Compiled for this direction and format only.
template <size_t kNumber, class ThreadCell, Direction direction>
bool launch_if_planned(const Plan& plan, const typename ThreadCell::Args& args,
                       const typename ThreadCell::Arrays& arrays, const Partition& partition, int64_t groups,
                       void* stream) {
  constexpr Shape kShape = for_gates(kShapes[kNumber], ThreadCell::Cell::kGates);
  if constexpr (kShape.format == kFormatOf<typename ThreadCell::Storage> && kShape.direction == direction &&
                is_distinct(kNumber, ThreadCell::Cell::kGates)) {
    using Link = LinkOf<kShape.blocks>;
    using Products = ProductsOf<typename ThreadCell::Storage, kShape.tensor_cores(), kShape.tiles.tiles_n>;
    using Kernel = Persistent<ThreadCell, Link, Products, kShape.tiles>;
    static_assert(Kernel::kSharedBytes == kShape.shared_bytes());
    if (plan.number != kNumber) return false;
    const Launch how = {dim3(static_cast<unsigned>(groups * plan.blocks)),
                        dim3(Kernel::kThreads),
                        stream,
                        Kernel::kSharedBytes,
                        Link::kCooperative,
                        Link::kCluster ? static_cast<unsigned>(plan.blocks) : 1u};
    launch(how, persistent<Kernel>, args, arrays, partition);
    return true;
  }
  return false;
}

template <class ThreadCell, Direction direction, size_t... kNumber>
void launch_planned(std::index_sequence<kNumber...>, const Plan& plan, const typename ThreadCell::Args& args,
                    const typename ThreadCell::Arrays& arrays, const Partition& partition, int64_t groups,
                    void* stream) {
  const bool launched =
      (launch_if_planned<kNumber, ThreadCell, direction>(plan, args, arrays, partition, groups, stream) || ...);
  if (!launched) unknown_value("shape of the persistent kernel", static_cast<int64_t>(plan.number));
}

// Launches `groups` groups from partition.first_group on.
template <class S, template <class, class> class ThreadCell, Direction direction, class Args, class Arrays>
void launch_groups(const Plan& plan, const Args& args, const Arrays& arrays, const Partition& partition, int64_t groups,
                   void* stream) {
  dispatch_cell(args.cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
    if constexpr (Cell::kRecurrent)
      launch_planned<ThreadCell<Cell, S>, direction>(std::make_index_sequence<std::size(kShapes)>{}, plan, args, arrays,
                                                     partition, groups, stream);
  });
}

template <class S, Direction direction>
void pack_planned(const Plan& plan, const Layer& layer, void* to, void* stream) {
  const Shape& shape = *plan.shape;
  const Packing packing = {shape.tiles, plan.units, plan.blocks, static_cast<int>(traits_of(layer.cell).gates)};
  if constexpr (sizeof(S) == 4)
    if (shape.tf32) return launch_pack<Tf32<S, 1>, direction>(layer, packing, to, stream);
  launch_pack<ProductsOf<S, sizeof(S) == 2, 1>, direction>(layer, packing, to, stream);
}

}  // namespace
}  // namespace fused_rnn::cuda

#define FUSED_RNN_LAUNCHES(Way, S, name)                                                            \
  void fused_rnn::cuda::launch_##name(const Plan& plan, const Way& args, const Way##Arrays& arrays, \
                                      const Partition& partition, int64_t groups, void* stream) {   \
    launch_groups<S, Way##Cell, Direction::k##Way>(plan, args, arrays, partition, groups, stream);  \
  }                                                                                                 \
  void fused_rnn::cuda::pack_##name(const Plan& plan, const Way& args, void* to, void* stream) {    \
    pack_planned<S, Direction::k##Way>(plan, args, to, stream);                                     \
  }
