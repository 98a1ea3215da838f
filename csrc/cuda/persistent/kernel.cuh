// The time loop in one launch. A group of blocks holds one copy of a problem's recurrent weights, each block a slice of
// the hidden units, and computes a tile of batch rows, which are the columns (N) of the product. Per step, each block:
//
//   waits for the slot of this step          h of all units of the group; backward, dgates (exchange.cuh)
//   multiplies its weights by it             split over the warps (warp_weights.cuh)
//   reduces over the warps                   through shared memory: a thread gets all sums of its cells
//   advances the cells, publishes            its part of the next slot
//   stores results, prefetches inputs        while the other blocks' parts are in flight
//
// ThreadCell: ForwardCell or BackwardCell (cells.cuh).
#pragma once
#include "cuda/persistent/exchange.cuh"
#include "cuda/persistent/traversal.cuh"
#include "cuda/persistent/warp_weights.cuh"

namespace fused_rnn::cuda {
namespace {

template <class ThreadCellType, class Link, class Products, Tiles kTiles>
class Persistent {
 public:
  using ThreadCell = ThreadCellType;
  static constexpr bool kCluster = Link::kCluster, kTensorCores = Products::kTensorCores;
  using S = typename ThreadCell::Storage;
  using T = Arithmetic<S>;
  using Weights = WarpWeights<Link, Products, kTiles>;
  using Args = typename ThreadCell::Args;
  using Arrays = typename ThreadCell::Arrays;

  static constexpr int kWarpsK = kTiles.warps_k, kTilesM = kTiles.tiles_m, kTilesN = kTiles.tiles_n;
  static constexpr int kThreads = kTiles.threads(), kWarps = kThreads / 32;
  static constexpr int kColumns = kTiles.columns(), kRows = kTiles.rows();  // of a block

  // Neighbouring lanes hold neighbouring units of a column, enough for stores to fill whole sectors; four of them make
  // a quad. Units are spread over the warps before columns, so that a small batch leaves whole warps idle.
  static constexpr int kMostUnits = kTiles.most_units(ThreadCell::kRows);
  static constexpr int kLaneUnits = kMostUnits % 16 == 0 ? 16 : kMostUnits % 8 == 0 ? 8 : 4;
  static constexpr int kLaneColumns = 32 / kLaneUnits;
  static constexpr int kUnitGroups = (kMostUnits + kLaneUnits - 1) / kLaneUnits;
  static constexpr int kCells = (kUnitGroups * kColumns / kLaneColumns + kWarps - 1) / kWarps;  // of a thread

  static constexpr int kSlotBytes = kTiles.depth() * kColumns * static_cast<int>(sizeof(S));  // at most
  static constexpr int kSumCount = kWarpsK * kColumns * kRows;                                // of one of two buffers
  static constexpr unsigned kRingBytes = Link::kSharedBytes + (Link::kRingIsShared ? 2 * kSlotBytes : 0);
  static constexpr unsigned kSharedBytes = kRingBytes + 2 * kSumCount * sizeof(T) + Weights::kSharedBytes;

  static FUSED_RNN_DEVICE void run(const Args& args, const Arrays& arrays, const Partition& partition) {
    Persistent(args, arrays, partition).run();
  }

 private:
  using QuadOfCell = Quad<S, ThreadCell::kPublished>;
  using Outlet = typename Link::template Outlet<QuadOfCell::kRuns>;

  FUSED_RNN_DEVICE Persistent(const Args& args, const Arrays& arrays, const Partition& partition)
      : args_(args),
        arrays_(arrays),
        number_(blockIdx.x / partition.blocks),
        rank_(blockIdx.x % partition.blocks),
        units_(partition.units),
        first_unit_(rank_ * partition.units),
        hidden_(static_cast<int>(args.hidden)),
        first_column_((partition.first_group + number_) % partition.groups * partition.columns),
        columns_(min_of(partition.columns, static_cast<int>(args.batch) - first_column_)),
        steps_(ThreadCell::slots(partition.end_step - partition.first_step)),
        known_depth_(ThreadCell::kPublished * partition.units * partition.blocks),
        chunks_(partition.depth / (kChunk * kWarpsK)),
        traversal_(args, (partition.first_group + number_) / partition.groups, ThreadCell::kBack, partition.first_step,
                   partition.end_step),
        common_(args, traversal_),
        link_({partition.ring, partition.flags, partition.blocks, number_, rank_, slot_bytes(partition.depth),
               slot_bytes(known_depth_), steps_, partition.first_step, partition.scope,
               Waiter(partition.watch, Link::kBlocks, ThreadCell::kBack, partition.first_group + number_, rank_)},
              shared_memory()),
        sums_(reinterpret_cast<T*>(shared_memory() + kRingBytes)),
        weights_(reinterpret_cast<unsigned char*>(sums_ + 2 * kSumCount),
                 static_cast<const Pack<4>*>(partition.weights) +
                     (traversal_.problem * partition.blocks + rank_) * kWarps * Weights::kPacks) {
    if constexpr (Link::kSlotPerStep) clear_rest(partition);
    link_.template begin_run<kSlotBytes>();
    FUSED_RNN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = warp() / kWarpsK * kTilesM * 16 + lane() / 4 + 8 * i;
      to_sums_[i] = keep(sums_ + sum_place(row, lane() % 4 * 2) + warp() % kWarpsK * kColumns * kRows);
    }
    FUSED_RNN_UNROLL
    for (int cell = 0; cell < kCells; ++cell) {
      const int unit = unit_of(cell), column = column_of(cell);
      publishes_[cell] = unit < units_ && column < kColumns;
      live_[cell] = publishes_[cell] && first_unit_ + unit < hidden_ && column < columns_;
      FUSED_RNN_UNROLL
      for (int part = 0; part < ThreadCell::kRows; ++part)
        from_sums_[cell][part] = keep(sums_ + (live_[cell] ? sum_place(part * units_ + unit, column) : 0));
      unsigned bytes[QuadOfCell::kRuns];
      FUSED_RNN_UNROLL
      for (int run = 0; run < QuadOfCell::kRuns; ++run)
        bytes[run] = slot_byte<S, kColumns>((first_unit_ + unit) / 4 * QuadOfCell::kNumbers + 4 * run, column);
      outlets_[cell] = link_.outlet(bytes);
    }
    link_.look_from(weights_.first_byte());
  }

  FUSED_RNN_DEVICE void run() {
    FUSED_RNN_UNROLL
    for (int cell = 0; cell < kCells; ++cell) {
      S published[ThreadCell::kPublished] = {};
      cells_[cell].rest();
      if (live_[cell]) {
        cells_[cell].begin(args_, arrays_, traversal_, first_column_ + column_of(cell), first_unit_ + unit_of(cell));
        cells_[cell].first_published(published);
        cells_[cell].fetch(args_, common_, traversal_, traversal_.number);
      }
      publish<0>(cell, published);
    }
    link_.arrive(0);
    int slot = 0;
    while (slot < steps_) {
      if (!multiply<0>(slot)) break;
      finish_step<false>(Constant<0>{}, slot++);
      if (slot == steps_ || !multiply<1>(slot)) break;
      finish_step<false>(Constant<1>{}, slot++);
    }
    if constexpr (Link::kWaitCanFail) drain_after_timeout(slot);
    FUSED_RNN_UNROLL
    for (int cell = 0; cell < kCells; ++cell)
      if (live_[cell]) cells_[cell].end(args_, arrays_, traversal_);
    link_.end_run();
  }

  // False after a timeout. The sums are double-buffered: one block barrier per step is enough.
  template <int kParity>
  FUSED_RNN_DEVICE bool multiply(int slot) {
    if (!link_.template wait<kParity>(slot)) return false;
    typename Weights::Sums warp_sums;
    weights_.multiply(link_, link_.template begin<kParity, kSlotBytes>(), chunks_, warp_sums);
    if constexpr (Link::kPolls) link_.end_waits(slot);
    put_sums(kParity * kSumCount, [&](int tile, int tile_n, T(&c)[4]) {  //
      Products::finish(warp_sums[tile], tile_n, c);
    });
    return true;
  }

  // The rest of the run after a timeout: the warp still takes part in its block's barriers, contributes NaN in place of
  // its sums, and publishes nothing.
  FUSED_RNN_DEVICE void drain_after_timeout(int slot) {
    if (slot == steps_) return;
    link_.report(slot);
    FUSED_RNN_NO_UNROLL
    for (; slot < steps_; ++slot) {
      const int parity = slot % 2;
      put_sums(parity * kSumCount, [](int, int, T(&c)[4]) {
        FUSED_RNN_UNROLL
        for (int i = 0; i < 4; ++i) c[i] = not_a_number<T>();
      });
      finish_step<true>(parity, slot);
    }
  }

  // Advances the cells, publishes, then stores results. Parity: int or Constant.
  template <bool kAlone, class Parity>
  FUSED_RNN_DEVICE void finish_step(Parity parity, int slot) {
    __syncthreads();
    const bool is_last = slot + 1 == steps_;
    FUSED_RNN_UNROLL
    for (int cell = 0; cell < kCells; ++cell) {
      if (!warp_publishes(cell)) continue;
      S published[ThreadCell::kPublished] = {};
      if (live_[cell]) {
        T sum[ThreadCell::kRows];
        FUSED_RNN_UNROLL
        for (int part = 0; part < ThreadCell::kRows; ++part) {
          const T* const from = from_sums_[cell][part] + parity * kSumCount;
          sum[part] = from[0];
          FUSED_RNN_UNROLL
          for (int k = 1; k < kWarpsK; ++k) sum[part] += from[k * kColumns * kRows];
        }
        cells_[cell].advance(common_, sum, published);
      }
      if constexpr (!kAlone)
        if (!is_last) publish<1 - parity>(cell, published);
    }
    if constexpr (!kAlone) {
      if (!is_last) link_.arrive(slot + 1);
      link_.template turn<parity>();
    }
    if (traversal_.packed) common_.pace(args_, traversal_);
    ++traversal_.number;
    FUSED_RNN_UNROLL
    for (int cell = 0; cell < kCells; ++cell) {
      if (!live_[cell]) continue;
      if (!ThreadCell::kBack || traversal_.number <= traversal_.end) cells_[cell].store(common_);
      cells_[cell].move(common_);
      cells_[cell].fetch(args_, common_, traversal_, traversal_.number);
    }
  }

  // Writes the warp's partial sums to shared memory. take(row tile, column tile, c) provides them.
  template <class Take>
  FUSED_RNN_DEVICE void put_sums(int buffer, Take take) {
    FUSED_RNN_UNROLL
    for (int tile = 0; tile < kTilesM; ++tile) FUSED_RNN_UNROLL
    for (int tile_n = 0; tile_n < kTilesN; ++tile_n) {
      T c[4];
      take(tile, tile_n, c);
      FUSED_RNN_UNROLL
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<Pair*>(to_sums_[i] + buffer + (tile_n * kRows + tile * 16) * 8) = {{c[2 * i], c[2 * i + 1]}};
    }
  }

  template <int kParity>
  FUSED_RNN_DEVICE void publish(int cell, const S (&published)[ThreadCell::kPublished]) {
    if (!warp_publishes(cell)) return;
    const QuadOfCell quad = gather_quad(published);
    if (publishes_[cell]) link_.template publish<kParity, kSlotBytes>(outlets_[cell], quad);
  }

  // Clears the padding of all slots, split among the group's blocks; readers poll it like any other data.
  FUSED_RNN_DEVICE void clear_rest(const Partition& partition) {
    const int rest = (partition.depth - known_depth_) / 4 * kColumns;
    for (int slot = rank_; slot < steps_; slot += partition.blocks)
      for (int i = threadIdx.x; i < rest; i += kThreads)
        link_.template clear<S>(slot, slot_byte<S, kColumns>(known_depth_ + i / kColumns * 4, i % kColumns));
  }

  static FUSED_RNN_DEVICE int lane() { return lane_of_warp(); }
  static FUSED_RNN_DEVICE int warp() { return static_cast<int>(threadIdx.x / 32); }
  static FUSED_RNN_DEVICE int min_of(int a, int b) { return a < b ? a : b; }
  static FUSED_RNN_DEVICE unsigned slot_bytes(int depth) { return static_cast<unsigned>(depth * kColumns * sizeof(S)); }
  static FUSED_RNN_DEVICE int unit_of(int cell) {
    return (cell * kWarps + warp()) % kUnitGroups * kLaneUnits + lane() % kLaneUnits;
  }
  static FUSED_RNN_DEVICE int column_of(int cell) {
    return (cell * kWarps + warp()) / kUnitGroups * kLaneColumns + lane() / kLaneUnits;
  }
  // Whether any lane of the warp publishes: lane 0 has the lowest unit and column.
  FUSED_RNN_DEVICE bool warp_publishes(int cell) const {
    return (cell * kWarps + warp()) % kUnitGroups * kLaneUnits < units_ &&
           (cell * kWarps + warp()) / kUnitGroups * kLaneColumns < kColumns;
  }
  // Index of a sum in the buffer of the first warp along K: [column tile][row][8], with the columns of a row swizzled
  // to avoid bank conflicts.
  static FUSED_RNN_DEVICE int sum_place(int row, int column) {
    return (column / 8 * kRows + row) * 8 + (column % 8 ^ row / 4 % (kLaneUnits / 4) * kLaneColumns);
  }

  // Under register pressure (doubles, or several cells beside many weights) addresses are recomputed.
  static FUSED_RNN_DEVICE T* keep(T* place) {
    constexpr bool kHasRoom = sizeof(T) == 4 && (kCells == 1 || kTilesM * kTiles.held * Products::kWords < 128);
    return kHasRoom ? keep_shared(place) : place;
  }

  struct alignas(2 * sizeof(T)) Pair {
    T sum[2];
  };

  const Args& args_;
  const Arrays& arrays_;
  const int number_, rank_;  // group within the launch; block within the group
  const int units_, first_unit_, hidden_, first_column_, columns_, steps_, known_depth_, chunks_;
  Traversal traversal_;
  typename ThreadCell::Common common_;
  Link link_;
  T* const sums_;
  const Weights weights_;
  T* to_sums_[2];
  const T* from_sums_[kCells][ThreadCell::kRows];
  Outlet outlets_[kCells];
  bool publishes_[kCells], live_[kCells];
  ThreadCell cells_[kCells];
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    persistent(const typename Kernel::ThreadCell::Args args, const typename Kernel::ThreadCell::Arrays arrays,
               const Partition partition) {
  constexpr int kNeeds = Kernel::kCluster ? 900 : Kernel::kTensorCores ? 800 : 700;
  if constexpr (kArchitecture >= kNeeds) Kernel::run(args, arrays, partition);
}

}  // namespace
}  // namespace fused_rnn::cuda
