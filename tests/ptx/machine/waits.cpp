#include "waits.h"

#include "registers.h"

#include <algorithm>

namespace ptx {
namespace {

template <class F>
void for_live_lanes(Block& b, F f) {
  for (auto& w : b.warps)
    for (uint32_t rest = w->lanes; rest; rest &= rest - 1) f(*w, static_cast<size_t>(__builtin_ctz(rest)));
}

// A barrier orders all that its threads did before it ahead of all that they do after it.
void join_knowledge(Block& b) {
  ++b.epoch;
  for (size_t number = 0; number < b.mbarriers.size(); ++number) {
    uint32_t seen = 0, in_cluster = 0;
    for_live_lanes(b, [&](Warp& w, size_t lane) {
      seen = std::max(seen, w.knows.seen[number][lane]);
      in_cluster = std::max(in_cluster, w.knows.seen_in_cluster[number][lane]);
    });
    for_live_lanes(b, [&](Warp& w, size_t lane) {
      w.knows.seen[number][lane] = seen;
      w.knows.seen_in_cluster[number][lane] = in_cluster;
    });
  }
}
void join_clocks(const std::vector<Block*>& blocks) {
  if (!options.weak) return;
  Clock all;
  for (Block* b : blocks)
    for_live_lanes(*b, [&](Warp& w, size_t lane) {
      tick(w.clocks[lane], w.grid_thread(static_cast<uint32_t>(lane)));
      join(all, w.clocks[lane]);
    });
  for (Block* b : blocks) for_live_lanes(*b, [&](Warp& w, size_t lane) { w.clocks[lane] = all; });
}

}  // namespace

bool is_shuffled() { return options.order != Order::kInTurn; }

// ------------------------------------------------------------------------------------------------

void make_ready(Warp& w) {
  w.state = State::kReady;
  if (w.listed) return;
  w.listed = true;
  w.block->grid->ready.push_back(&w);
}

void end_block_barrier_if_due(Block& b) {
  if (b.alive == 0 || b.waiting < b.alive) return;
  b.waiting = 0;
  for (auto& w : b.warps) {
    if (w->vote == kNone) continue;
    predicate(*w, w->vote) = b.unanimous ? kAllLanes : 0;
    w->vote = kNone;
  }
  b.unanimous = true;
  join_knowledge(b);
  join_clocks({&b});
  b.grid->note_progress();
  for (auto& w : b.warps)
    if (w->state == State::kAtBarrier) make_ready(*w);
}

void end_cluster_barrier_if_due(Cluster& c) {
  uint32_t all = 0;
  for (Block* b : c.blocks)
    for (auto& w : b->warps) all += w->lanes != 0;
  if (all == 0 || c.arrived < all) return;
  c.arrived = 0;
  ++c.phase;
  join_clocks(c.blocks);
  for (Block* b : c.blocks) {
    join_knowledge(*b);
    b->grid->note_progress();
    for (auto& w : b->warps)
      if (w->state == State::kAtCluster) make_ready(*w);
  }
}

void deliver(Grid& g, size_t which) {
  const AsyncStore store = g.on_the_way[which];
  if (is_shuffled()) {
    g.on_the_way[which] = g.on_the_way.back();
    g.on_the_way.pop_back();
  } else {
    g.on_the_way.erase(g.on_the_way.begin() + static_cast<long>(which));
  }
  Block& to = *store.to;
  const std::string in = ", in " + g.kernel.name;
  if (to.alive == 0) fail("an asynchronous store to a block that has ended" + in);
  Mbarrier& counter = *to.mbarriers.at(store.mbarrier_byte);
  const uint32_t heard = to.rank < store.heard.size() ? store.heard[to.rank] : 0;
  const int number = to.mbarriers.number(store.mbarrier_byte);
  const SharedMemory::Completion with = {number, counter.phase + 1, store.remote, heard};
  const std::string wrong = to.shared.write_async(to.epoch, with, store.byte, 4 * store.words, store.data);
  if (!wrong.empty()) fail(wrong + in);
  join(counter.arriving, store.heard);
  counter.transaction_bytes -= static_cast<int32_t>(4 * store.words);
  if (counter.transaction_bytes < -Mbarriers::kMostCount) fail("more bytes than an mbarrier counts" + in);
  counter.complete_if_due();
  g.note_progress();
}

}  // namespace ptx
