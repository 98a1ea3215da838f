// What threads wait for each other by: PTX ISA 9.7.13 (Parallel Synchronization and Communication), and the
// asynchronous stores whose bytes an mbarrier counts. The scheduler does the waiting itself (schedule.cpp).
#include "access.h"
#include "opcodes.h"
#include "registers.h"

namespace ptx {
namespace {

template <class F>
void for_each_lane(uint32_t mask, F f) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) f(__builtin_ctz(rest));
}

// 9.7.9.23 mapa: where a block of the cluster has what this one has at an address.
void map_address(Warp& w, const Instruction& i, uint32_t mask) {
  for_each_lane(mask, [&](int lane) {
    const auto own = get<uint32_t>(w, i.s[0], lane), rank = get<uint32_t>(w, i.s[1], lane);
    const size_t size = w.block->cluster->blocks.size();
    if (rank >= size) fail_at(w, i, "mapa to rank " + std::to_string(rank) + " of " + std::to_string(size));
    if (own >> kRankShift) fail_at(w, i, "mapa of an address that is not the block's own");
    put<uint32_t>(w, i.d[0], lane, (rank + 1) << kRankShift | own);
  });
}

// ---- mbarriers: 9.7.13.15 -------------------------------------------------------------------------------------------

Mbarrier& mbarrier_of(const Warp& w, const Instruction& i, uint64_t address) {
  check_alignment(w, i, address, 8);
  const auto [block, byte] = shared_place(w, i, address, 8);
  if (block != w.block) fail_at(w, i, "an mbarrier of another block");
  Mbarrier* const found = block->mbarriers.at(byte);
  if (!found) fail_at(w, i, "no mbarrier at shared byte " + std::to_string(byte));
  return *found;
}

// 9.7.13.15.9 mbarrier.init
void mbarrier_init(Warp& w, const Instruction& i, uint32_t mask) {
  for_each_lane(mask, [&](int lane) {
    const uint64_t address = address_of(w, i, lane, 0, 0);
    check_alignment(w, i, address, 8);
    const auto [block, byte] = shared_place(w, i, address, 8);
    const auto count = static_cast<int32_t>(get<uint32_t>(w, i.s[1], lane));
    if (block != w.block) fail_at(w, i, "initialises an mbarrier of another block");
    if (count < 1 || count > Mbarriers::kMostCount) fail_at(w, i, "an mbarrier of " + std::to_string(count));
    if (block->mbarriers.at(byte)) fail_at(w, i, "an mbarrier is initialised again");
    block->mbarriers.add(byte, count);
    for (auto& warp : block->warps) {
      warp->knows.seen.resize(block->mbarriers.size());
      warp->knows.seen_in_cluster.resize(block->mbarriers.size());
    }
  });
}

// 9.7.13.15.13 mbarrier.arrive, with .expect_tx (9.7.13.15.11): one arrival, and bytes still to come
void mbarrier_arrive_expect(Warp& w, const Instruction& i, uint32_t mask) {
  w.block->grid->note_progress();
  for_each_lane(mask, [&](int lane) {
    Mbarrier& barrier = mbarrier_of(w, i, address_of(w, i, lane, 0, 0));
    const auto bytes = get<uint32_t>(w, i.s[1], lane);
    if (bytes > Mbarriers::kMostCount ||
        barrier.transaction_bytes + static_cast<int64_t>(bytes) > Mbarriers::kMostCount)
      fail_at(w, i, "more bytes than an mbarrier counts");
    if (barrier.pending <= 0) fail_at(w, i, "more arrivals at an mbarrier than it expects");
    barrier.transaction_bytes += static_cast<int32_t>(bytes);
    --barrier.pending;
    barrier.complete_if_due();
  });
}

// 9.7.13.15.16 mbarrier.test_wait, try_wait: whether the phase of this parity is complete. Only the one that goes on
// and the one before it can be asked for.
void mbarrier_wait_parity(Warp& w, const Instruction& i, uint32_t mask) {
  uint32_t complete = 0;
  for_each_lane(mask, [&](int lane) {
    const uint64_t address = address_of(w, i, lane, 0, 0);
    const Mbarrier& barrier = mbarrier_of(w, i, address);
    const auto parity = get<uint32_t>(w, i.s[1], lane);
    if (parity > 1) fail_at(w, i, "a parity of " + std::to_string(parity));
    if ((barrier.phase & 1) == parity) return;  // that is the phase still going on
    complete |= 1u << lane;
    const auto number = static_cast<size_t>(w.block->mbarriers.number(barrier.byte));
    if (i.semantic == Semantic::kRelaxed) return;
    w.knows.seen[number][lane] = barrier.phase;
    join(w.knows.heard, barrier.arrived);
    if (i.scope != Scope::kBlock) w.knows.seen_in_cluster[number][lane] = barrier.phase;
  });
  uint32_t& to = predicate(w, i.d[0]);
  to = (to & ~mask) | complete;
}

// What goes with a message: everything that this thread has done is over, and what it has heard of from others.
const Clock& tell(Warp& w) {
  const Launch& launch = w.block->grid->launch;
  if (launch.block.count() == 1) {
    w.knows.heard.resize(launch.cluster);
    w.knows.heard[w.block->rank] = ++w.knows.time;
  }
  return w.knows.heard;
}

// 9.7.9.12 st.async: weak, in its own time; then the mbarrier, which lies beside the data, counts the bytes.
template <int kWords>
void store_async(Warp& w, const Instruction& i, uint32_t mask) {
  w.block->grid->note_progress();
  if (w.block->falls_silent()) return;
  for_each_lane(mask, [&](int lane) {
    const uint64_t to = address_of(w, i, lane, 0, 0), mbarrier = address_of(w, i, lane, 1, 1 + kWords);
    check_alignment(w, i, to, 4 * kWords);
    check_alignment(w, i, mbarrier, 8);
    const auto [block, byte] = shared_place(w, i, to, 4 * kWords);
    const auto [mbarrier_block, mbarrier_byte] = shared_place(w, i, mbarrier, 8);
    if (block != mbarrier_block) fail_at(w, i, "st.async with an mbarrier of another block than its data");
    if (!block->mbarriers.at(mbarrier_byte)) fail_at(w, i, "st.async with an mbarrier that is not initialised");
    if (block->mbarriers.overlap(byte, 4 * kWords)) fail_at(w, i, "a store over an mbarrier");
    AsyncStore store = {block, byte, mbarrier_byte, block != w.block, kWords, {}, tell(w), w.block->grid->executed};
    for (int k = 0; k < kWords; ++k) store.data[k] = get<uint32_t>(w, i.s[1 + k], lane);
    w.block->grid->on_the_way.push_back(store);
  });
}

// ---- barriers, fences -----------------------------------------------------------------------------------------------

// What any of these lanes knows, all of them know.
void share_knowledge(Knowledge& knows, uint32_t mask) {
  for (auto* phases : {&knows.seen, &knows.seen_in_cluster})
    for (auto& of_lanes : *phases) {
      uint32_t most = 0;
      for_each_lane(mask, [&](int lane) { most = std::max(most, of_lanes[lane]); });
      for_each_lane(mask, [&](int lane) { of_lanes[lane] = most; });
    }
}

// 9.7.13.2 bar.warp.sync orders memory accesses of its lanes.
void sync_warp(Warp& w, const Instruction&, uint32_t mask) {
  w.knows.sync(mask, w.lanes);
  share_knowledge(w.knows, mask);
  if (!options.weak) return;
  Clock all;
  for_each_lane(mask, [&](int lane) {
    tick(w.clocks[lane], w.grid_thread(static_cast<uint32_t>(lane)));
    join(all, w.clocks[lane]);
  });
  for_each_lane(mask, [&](int lane) { w.clocks[lane] = all; });
}

// The scheduler does all of it; or it orders what is in order here anyway.
void nothing(Warp&, const Instruction&, uint32_t) {}

}  // namespace

void add_barriers(Opcodes& all) {
  all.add("mapa.shared::cluster.u32", map_address, {4, 4});
  all.add("mbarrier.init.shared::cta.b64", mbarrier_init, {8, 4});
  // 9.7.13.4 fence.mbarrier_init: mbarriers are made at once, for all blocks.
  all.add("fence.mbarrier_init.release.cluster", nothing, {});
  all.add("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64", mbarrier_arrive_expect, {8, 4});
  for (const std::string wait : {"mbarrier.test_wait.parity", "mbarrier.try_wait.parity"})
    for (const std::string how : {"", ".acquire.cta", ".acquire.cluster", ".relaxed.cta", ".relaxed.cluster"})
      all.add(wait + how + ".shared::cta.b64", mbarrier_wait_parity, {8, 4}, Kind::kPoll);
  for (const std::string weak : {"", ".weak"}) {
    const std::string name = "st.async" + weak + ".shared::cluster.mbarrier::complete_tx::bytes";
    all.add(name + ".v4.b32", store_async<4>, {8, 4, 4, 4, 4, 8});
    all.add(name + ".v2.b32", store_async<2>, {8, 4, 4, 8});
    all.add(name + ".b32", store_async<1>, {8, 4, 8});
  }
  // 9.7.13.3 barrier.cluster
  for (const std::string aligned : {"", ".aligned"}) {
    all.add("barrier.cluster.arrive.release" + aligned, nothing, {}, Kind::kClusterArrive);
    all.add("barrier.cluster.arrive" + aligned, nothing, {}, Kind::kClusterArrive);
    all.add("barrier.cluster.wait.acquire" + aligned, nothing, {}, Kind::kClusterWait);
    all.add("barrier.cluster.wait" + aligned, nothing, {}, Kind::kClusterWait);
  }
  // 9.7.13.1 bar.sync, barrier.sync, of the whole block
  all.add("bar.sync", nothing, {4}, Kind::kBarrier);
  all.add("barrier.sync", nothing, {4}, Kind::kBarrier);
  all.add("bar.red.and.pred", nothing, {4, kPredicate}, Kind::kBarrier);
  all.add("bar.warp.sync", sync_warp, {4}, Kind::kWarp);
  all.add("nanosleep.u32", nothing, {4}, Kind::kPoll);  // 9.7.19.2: for any time, none included
}

}  // namespace ptx
