// The loop over time in one launch. A group of blocks holds one copy of a problem's recurrent weights, each block some
// hidden units with all that belongs to them, and serves some columns (rows of the batch: here they are columns, as
// weights times batch is what is computed). At every step, in every block:
//
//   wait for the slot of this step           what all units of the group have shown (exchange.cuh)
//   multiply                                 the block's weights by it, spread over the warps (warp_weights.cuh)
//   reduce through shared memory             so that a thread has all sums of its cells
//   advance the cells, publish               their part of the next slot
//   store results, fetch inputs              while the others' parts are on their way
//
// A Walk says what a cell does on its way through time: ForwardCell and BackwardCell (persistent_cells.cuh).
#pragma once
#include "warp_weights.cuh"

namespace fused_rnn {
namespace {

template <class WalkType, class Link, class Products, Tiles kTiles>
struct Persistent {
  using Walk = WalkType;
  static constexpr bool kCluster = Link::kCluster, kTensorCores = Products::kTensorCores;
  using S = typename Walk::Storage;
  using T = Arithmetic<S>;
  using Weights = WarpWeights<Link, Products, kTiles>;

  static constexpr int kWarpsK = kTiles.warps_k, kTilesM = kTiles.tiles_m, kTilesN = kTiles.tiles_n;
  static constexpr int kThreads = kTiles.threads(), kWarps = kThreads / 32;
  static constexpr int kColumns = kTiles.columns(), kRows = kTiles.rows();  // of a block
  static constexpr int kMostUnits = kTiles.most_units(Walk::kRows);
  static constexpr int kCells = (kMostUnits * kColumns + kThreads - 1) / kThreads;  // of a thread

  static constexpr unsigned kSlotBytes = kTiles.depth() * kColumns * sizeof(S);  // at most
  static constexpr unsigned kSumCount = kWarpsK * kColumns * kRows;              // of one of two buffers
  static constexpr unsigned kRingBytes = Link::kSharedBytes + (Link::kRingIsShared ? 2 * kSlotBytes : 0);
  static constexpr unsigned kSharedBytes = kRingBytes + 2 * kSumCount * sizeof(T) + Weights::kSharedBytes;

  static FUSED_RNN_DEVICE void run(const typename Walk::Args& args, const typename Walk::Arrays& arrays,
                                   const Cut& cut) {
    const int lane = lane_of_warp(), warp = threadIdx.x / 32, warp_m = warp / kWarpsK, warp_k = warp % kWarpsK;
    const int number = blockIdx.x / cut.blocks, rank = blockIdx.x % cut.blocks, group = cut.first_group + number;
    const int64_t problem = group / cut.groups;
    const int first_column = group % cut.groups * cut.columns, first_unit = rank * cut.units;
    const int padded = cut.units * cut.blocks, hidden = static_cast<int>(args.hidden);
    const int columns = min_of(cut.columns, static_cast<int>(args.batch) - first_column);
    const int steps = Walk::slots(cut.end_step - cut.first_step);
    const int depth = Walk::kShown * padded;  // what is really shown, in units' order

    unsigned char* const shared = shared_memory();
    Link link({cut.ring, cut.flags, cut.blocks, number, rank, static_cast<unsigned>(cut.depth * kColumns * sizeof(S)),
               static_cast<unsigned>(depth * kColumns * sizeof(S)), steps, cut.scope},
              shared);
    T* const sums = reinterpret_cast<T*>(shared + kRingBytes);
    const Weights weights(
        reinterpret_cast<unsigned char*>(sums + 2 * kSumCount),
        static_cast<const Pack<4>*>(cut.weights) + (problem * cut.blocks + rank) * kWarps * Weights::kPacks);

    // ---- the cells ----
    // Four neighbouring lanes have four units of one column: one publication.
    const auto unit_of = [&](int cell) { return (cell * kWarps + warp) / kTilesN * 4 + lane % 4; };
    const auto column_of = [&](int cell) { return (cell * kWarps + warp) % kTilesN * 8 + lane / 4; };
    const auto is_live = [&](int cell) {
      return unit_of(cell) < cut.units && first_unit + unit_of(cell) < hidden && column_of(cell) < columns;
    };
    const auto publish = [&](int slot, int cell, const S* shown) {
      FUSED_RNN_UNROLL
      for (int k = 0; k < Walk::kShown; ++k)
        link.publish(slot, slot_byte<S, kColumns>((k * padded + first_unit + unit_of(cell)) / 4 * 4, column_of(cell)),
                     gather_four(shown[k]));
    };
    if constexpr (Link::kSlotPerStep) {
      // The blocks of a group share out the slots. Whoever comes first reads on only when all of a slot is there.
      const int rest = (cut.depth - depth) / 4 * kColumns;
      for (int slot = rank; slot < steps; slot += cut.blocks)
        for (int i = threadIdx.x; i < rest; i += kThreads)
          link.template clear<S>(slot, slot_byte<S, kColumns>(depth + i / kColumns * 4, i % kColumns));
    }
    link.begin();
    Walk walk[kCells];
    typename Walk::Moment moment(args, problem, cut.first_step, cut.end_step);
    FUSED_RNN_UNROLL
    for (int cell = 0; cell < kCells; ++cell) {
      S shown[Walk::kShown] = {};
      if (is_live(cell)) {
        walk[cell].begin(args, arrays, problem, first_column + column_of(cell), first_unit + unit_of(cell), shown);
        walk[cell].fetch(args, arrays, moment);
      }
      if (unit_of(cell) < cut.units) publish(0, cell, shown);  // whole warps, as units is a multiple of 4
    }
    link.arrive(0);

    for (int slot = 0; slot < steps; ++slot) {
      link.wait(slot);
      T* const partial = sums + slot % 2 * kSumCount;  // two buffers: one barrier in a step is enough
      typename Weights::Sums warp_sums;
      weights.multiply(link, link.begin_of(slot), cut.depth, warp_sums);
      FUSED_RNN_UNROLL
      for (int tile = 0; tile < kTilesM; ++tile) FUSED_RNN_UNROLL
      for (int tile_n = 0; tile_n < kTilesN; ++tile_n) {
        T c[4];
        Products::finish(warp_sums[tile], tile_n, c);
        T* const to = partial + ((warp_k * kTilesN + tile_n) * kRows + (warp_m * kTilesM + tile) * 16 + lane / 4) * 8 +
                      lane % 4 * 2;
        to[0] = c[0];
        to[1] = c[1];
        to[8 * 8] = c[2];
        to[8 * 8 + 1] = c[3];
      }
      __syncthreads();
      S shown[kCells][Walk::kShown];
      FUSED_RNN_UNROLL
      for (int cell = 0; cell < kCells; ++cell) {
        if (unit_of(cell) >= cut.units) continue;
        T sum[Walk::kRows];
        FUSED_RNN_UNROLL
        for (int part = 0; part < Walk::kRows; ++part) {
          sum[part] = T(0);
          FUSED_RNN_UNROLL
          for (int k = 0; k < kWarpsK; ++k)
            sum[part] += partial[((k * kTilesN + column_of(cell) / 8) * kRows + part * cut.units + unit_of(cell)) * 8 +
                                 column_of(cell) % 8];
        }
        FUSED_RNN_UNROLL
        for (int k = 0; k < Walk::kShown; ++k) shown[cell][k] = S{};
        if (is_live(cell)) walk[cell].advance(args, moment, sum, shown[cell]);
        if (slot + 1 < steps) publish(slot + 1, cell, shown[cell]);
      }
      if (slot + 1 < steps) link.arrive(slot + 1);
      const typename Walk::Moment next(args, problem, cut.first_step + slot + 1, cut.end_step);
      FUSED_RNN_UNROLL
      for (int cell = 0; cell < kCells; ++cell) {
        if (!is_live(cell)) continue;
        walk[cell].store(args, arrays, moment);
        walk[cell].fetch(args, arrays, next);
      }
      moment = next;
    }
    FUSED_RNN_UNROLL
    for (int cell = 0; cell < kCells; ++cell)
      if (is_live(cell)) walk[cell].end(args, arrays);
  }

 private:
  static FUSED_RNN_DEVICE int min_of(int a, int b) { return a < b ? a : b; }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    persistent(const typename Kernel::Walk::Args args, const typename Kernel::Walk::Arrays arrays, const Cut cut) {
#ifdef __CUDA_ARCH__  // what this GPU has no instructions for is never launched
  constexpr int kNeeds = Kernel::kCluster ? 900 : Kernel::kTensorCores ? 800 : 700;
#else
  constexpr int kNeeds = 0, __CUDA_ARCH__ = 1;
#endif
  if constexpr (__CUDA_ARCH__ >= kNeeds) Kernel::run(args, arrays, cut);
}

}  // namespace
}  // namespace fused_rnn
