// Launches of the persistent kernel. Every one that is compiled: the shapes of plan.h, by cell, for the dtypes of the
// .cu files that include this, each of which takes a compiler a while.
#pragma once
#include <algorithm>

#include "persistent.cuh"
#include "persistent.h"
#include "persistent_cells.cuh"

namespace fused_rnn {
namespace {

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

template <class Walk, class Link, class Tiling>
void launch_kernel(const Plan& plan, const typename Walk::Args& args, const typename Walk::Arrays& arrays, Cut cut,
                   int64_t groups, void* stream) {
  using Kernel = Persistent<Walk, Link, Tiling>;
  Launch how = {dim3(static_cast<unsigned>(groups * plan.blocks)),
                dim3(Kernel::kThreads),
                stream,
                Kernel::kSharedBytes,
                Link::kCooperative,
                Link::kCluster ? static_cast<unsigned>(plan.blocks) : 1u};
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

// Of so many groups, from cut.first_group on.
template <class S, template <class, class> class Walk, Direction direction, class Args, class Arrays>
void launch_groups(const Plan& plan, const Args& args, const Arrays& arrays, const Cut& cut, int64_t groups,
                   void* stream) {
  dispatch_cell(args.cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
    if constexpr (Cell::kRecurrent) launch_shape<Walk, direction, Cell, S>(plan, args, arrays, cut, groups, stream);
  });
}

}  // namespace
}  // namespace fused_rnn

#define FUSED_RNN_LAUNCHES(S, name)                                                                                \
  namespace fused_rnn {                                                                                            \
  void launch_##name(const Plan& plan, const Forward& f, const ForwardArrays& a, const Cut& cut, int64_t groups,   \
                     void* stream) {                                                                               \
    launch_groups<S, ForwardCell, Direction::kForward>(plan, f, a, cut, groups, stream);                           \
  }                                                                                                                \
  void launch_##name(const Plan& plan, const Backward& g, const BackwardArrays& a, const Cut& cut, int64_t groups, \
                     void* stream) {                                                                               \
    launch_groups<S, BackwardCell, Direction::kBackward>(plan, g, a, cut, groups, stream);                         \
  }                                                                                                                \
  }
