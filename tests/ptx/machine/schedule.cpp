// Runs grids: which warp runs next and for how long, how its lanes part and meet, when asynchronous stores arrive.
#include <algorithm>

#include "grid.h"
#include "registers.h"
#include "waits.h"

namespace ptx {
namespace {

constexpr uint32_t kInTurnQuantum = 4096;  // instructions of a warp's turn

// ---- a warp's turn --------------------------------------------------------------------------------------------------

class Turn {
 public:
  Turn(Warp& warp, uint32_t quantum) : w_(warp), g_(*warp.block->grid), left_(quantum) {}

  // Returns when the warp cannot go on, or has run long enough.
  void run() {
    while (left_ > 0 && !over_) {
      const size_t k = choose();
      uint32_t together = left_;
      if (w_.fragments.size() > 1 && is_shuffled()) together = std::min<uint32_t>(left_, 1 + g_.random() % 64);
      left_ -= together;
      changed_ = false;
      for (current_ = k; together > 0 && !changed_ && !over_; --together) step();
      left_ += together;
    }
  }

 private:
  const Instruction& instruction() const { return g_.kernel.code[w_.fragments[current_].pc]; }

  // Which lanes go on: those that are furthest behind, so that they meet the others; or any.
  size_t choose() {
    const auto& all = w_.fragments;
    if (all.size() == 1 && !all[0].waiting) return 0;
    std::vector<size_t> able;
    for (size_t k = 0; k < all.size(); ++k)
      if (!all[k].waiting) able.push_back(k);
    if (able.empty())
      fail_at(w_, g_.kernel.code[all[0].pc],
              all.size() > 1 ? "lanes of a warp wait for each other at different places"
                             : "a warp waits for lanes that are not there");
    if (options.order == Order::kAdversarial || (options.order == Order::kShuffled && g_.random() % 16 == 0))
      return able[g_.random() % able.size()];
    return *std::min_element(able.begin(), able.end(), [&](size_t a, size_t b) { return all[a].pc < all[b].pc; });
  }

  // Lanes that are where the current ones are join them.
  bool meet() {
    auto& all = w_.fragments;
    const size_t before = all.size();
    for (size_t o = 0; o < all.size();)
      if (o != current_ && all[o].pc == all[current_].pc) {
        all[current_].mask |= all[o].mask;
        all.erase(all.begin() + static_cast<long>(o));
        if (o < current_) --current_;
      } else {
        ++o;
      }
    return all.size() < before;
  }

  void step() {
    if (w_.fragments.size() > 1 && options.order != Order::kAdversarial && meet())
      w_.fragments[current_].waiting = false;
    Fragment& f = w_.fragments[current_];
    const Instruction& i = instruction();
    const uint32_t mask =
        i.predicate == kNone ? f.mask : f.mask & (predicate(w_, i.predicate) ^ (i.negated ? kAllLanes : 0));
    switch (i.kind) {
      case Kind::kPlain:
        count(f, mask);
        if (mask) i.run(w_, i, mask);
        ++f.pc;
        break;
      case Kind::kPoll:
        count(f, mask);
        if (mask) i.run(w_, i, mask);
        ++f.pc;
        over_ = true;
        break;
      case Kind::kBranch:
        count(f, mask);
        branch(f, i, mask);
        break;
      case Kind::kExit:
        count(f, mask);
        exit(mask);
        break;
      default:
        together(i, mask);
    }
  }

  void count(const Fragment& f, uint32_t mask) {
    Count& c = g_.kernel.counts[f.pc];
    ++c.executed;
    c.lanes += static_cast<uint64_t>(__builtin_popcount(mask));
    ++g_.executed;
  }

  void branch(Fragment& f, const Instruction& i, uint32_t mask) {
    const uint32_t stay = f.mask & ~mask;
    const uint32_t next = f.pc + 1;
    f.pc = mask ? i.target : next;
    if (mask == 0 || stay == 0) return;
    f.mask = mask;
    w_.fragments.push_back({next, stay, false});
    changed_ = true;
  }

  void exit(uint32_t mask) {
    Fragment& f = w_.fragments[current_];
    f.mask &= ~mask;
    ++f.pc;
    if (f.mask == 0) {
      w_.fragments.erase(w_.fragments.begin() + static_cast<long>(current_));
      changed_ = true;
    }
    for (Fragment& rest : w_.fragments) rest.waiting = false;  // for those that have gone
    w_.lanes &= ~mask;
    if (w_.lanes != 0) return;
    over_ = true;
    w_.state = State::kDone;
    --w_.block->alive;
    end_block_barrier_if_due(*w_.block);
    end_cluster_barrier_if_due(*w_.block->cluster);
    g_.note_progress();
  }

  // Lanes that an instruction waits for: all of the warp, or those of this lane's member mask.
  uint32_t members_of(const Instruction& i, int lane) const {
    if (i.kind != Kind::kWarp || i.members == kNone) return w_.lanes;
    const auto members = get<uint32_t>(w_, i.members, lane);
    if (!(members >> lane & 1)) fail_at(w_, i, "a lane that its own member mask leaves out");
    return members & w_.lanes;
  }

  // Groups of lanes that execute a collective together, by their member masks. Whether all of each of them are here.
  bool find_groups(const Instruction& i, uint32_t mask) {
    group_count_ = 0;
    bool complete = true;
    for (uint32_t rest = mask; rest;) {
      const uint32_t members = members_of(i, __builtin_ctz(rest)), here = members & mask;
      if (i.members != kNone)
        for (uint32_t others = here; others; others &= others - 1)
          if (members_of(i, __builtin_ctz(others)) != members) fail_at(w_, i, "lanes that name different member masks");
      complete = complete && here == members;
      groups_[group_count_++] = members;
      rest &= ~here;
    }
    return complete;
  }

  void together(const Instruction& i, uint32_t mask) {
    if (i.predicate != kNone && mask != w_.fragments[current_].mask) {
      if (mask != 0) fail_at(w_, i, "a predicated collective that is not uniform");
      count(w_.fragments[current_], mask);
      ++w_.fragments[current_].pc;
      return;
    }
    meet();
    Fragment& f = w_.fragments[current_];
    if (!find_groups(i, f.mask)) {
      f.waiting = true;
      changed_ = true;
      return;
    }
    f.waiting = false;
    count(f, f.mask);
    ++f.pc;
    switch (i.kind) {
      case Kind::kBarrier:
        return wait_at_barrier(i);
      case Kind::kClusterArrive:
        return arrive_at_cluster(i);
      case Kind::kClusterWait:
        return wait_at_cluster(i);
      default:
        for (size_t k = 0; k < group_count_; ++k) i.run(w_, i, groups_[k]);
    }
  }

  void wait_at_barrier(const Instruction& i) {
    over_ = true;
    if (i.d[0] != kNone) {
      w_.vote = i.d[0];
      w_.block->unanimous &= (predicate(w_, i.s[1]) & w_.lanes) == w_.lanes;
    }
    ++w_.block->waiting;
    w_.state = State::kAtBarrier;
    g_.note_progress();
    end_block_barrier_if_due(*w_.block);
  }
  void arrive_at_cluster(const Instruction& i) {
    if (w_.arrived_at_cluster) fail_at(w_, i, "arrives at the cluster's barrier twice");
    Cluster& cluster = *w_.block->cluster;
    w_.arrived_at_cluster = true;
    w_.cluster_phase = cluster.phase;
    ++cluster.arrived;
    end_cluster_barrier_if_due(cluster);
  }
  void wait_at_cluster(const Instruction& i) {
    if (!w_.arrived_at_cluster) fail_at(w_, i, "waits at the cluster's barrier without having arrived");
    w_.arrived_at_cluster = false;
    if (w_.block->cluster->phase != w_.cluster_phase) return;
    w_.state = State::kAtCluster;
    over_ = true;
  }

  Warp& w_;
  Grid& g_;
  uint32_t left_;
  size_t current_ = 0;  // of the warp's fragments
  uint32_t groups_[kLanes];
  size_t group_count_ = 0;
  bool changed_ = false;  // fragments are to be chosen among anew
  bool over_ = false;
};

// ---- whose turn it is -----------------------------------------------------------------------------------------------

class Scheduler {
 public:
  explicit Scheduler(Grid& grid) : g_(grid) {}

  // These blocks, which are all there are, to their end.
  void run(const std::vector<std::unique_ptr<Block>>& blocks) {
    uint64_t warps = 0;
    for (auto& b : blocks)
      for (auto& w : b->warps) make_ready(*w), ++warps;
    const uint64_t patience = options.patience ? options.patience : 20'000'000 + 200'000 * warps;
    g_.note_progress();
    while (!(g_.ready.empty() && g_.on_the_way.empty())) {
      if (g_.executed - g_.executed_at_progress > patience) fail("nothing but polling goes on, in " + g_.kernel.name);
      deliver_some();
      if (!g_.ready.empty()) take_turn();
    }
    for (auto& b : blocks)
      if (b->alive > 0) fail("everybody waits, in " + g_.kernel.name + whereabouts(blocks));
  }

 private:
  void deliver_some() {
    if (g_.on_the_way.empty()) return;
    if (held_up >= 0 && !g_.ready.empty()) return deliver_late();
    if (!is_shuffled()) {
      while (!g_.on_the_way.empty()) deliver(g_, 0);
      return;
    }
    if (!g_.ready.empty() && g_.random() % 3 > 0) return;
    size_t count = 1 + g_.random() % std::min<size_t>(g_.on_the_way.size(), 64);
    while (count-- > 0 && !g_.on_the_way.empty()) deliver(g_, g_.random() % g_.on_the_way.size());
  }

  void deliver_late() {
    constexpr uint64_t kInstructions = 50'000;
    if (g_.random() % 64 > 0) return;  // that is often enough to look
    for (size_t k = 0; k < g_.on_the_way.size();)
      if (g_.executed - g_.on_the_way[k].sent_at > kInstructions)
        deliver(g_, k);  // in its place there is another one now
      else
        ++k;
  }

  void take_turn() {
    const size_t which = next();
    Warp& w = *g_.ready[which];
    if (is_shuffled())
      g_.ready[which] = g_.ready.back(), g_.ready.pop_back();
    else
      g_.ready.erase(g_.ready.begin() + static_cast<long>(which));
    w.listed = false;
    const uint64_t before = g_.progress;
    Turn(w, is_shuffled() ? 16 + g_.random() % 512 : kInTurnQuantum).run();
    w.polled_at = g_.progress == before ? before : ~uint64_t{0};
    if (w.state == State::kReady) make_ready(w);
  }

  size_t next() {
    if (held_up >= 0) return next_but_held_up();
    if (!is_shuffled()) return 0;
    if (options.order == Order::kBlockAhead || options.order == Order::kWarpAhead) {
      if (g_.random() % 64 == 0) favourite_ = g_.random();
      for (size_t k = 0; k < g_.ready.size(); ++k)
        if (is_favourite(*g_.ready[k]) && g_.ready[k]->polled_at != g_.progress) return k;
    }
    if (options.order == Order::kBlockBehind && g_.ready.size() > 1) return next_of_others();
    return g_.random() % g_.ready.size();
  }
  size_t next_but_held_up() {
    const size_t first = g_.random() % g_.ready.size();
    for (size_t i = 0; i < g_.ready.size(); ++i) {
      const size_t k = (first + i) % g_.ready.size();
      if (g_.ready[k]->block->number != held_up) return k;
    }
    return first;
  }
  size_t next_of_others() {
    constexpr int kTries = 32;  // that find somebody, unless nearly all are polling
    if (g_.random() % 1024 == 0) favourite_ = g_.random();
    for (int i = 0; i < kTries; ++i) {
      const size_t k = g_.random() % g_.ready.size();
      if (!is_favourite(*g_.ready[k]) && g_.ready[k]->polled_at != g_.progress) return k;
    }
    for (size_t k = 0; k < g_.ready.size(); ++k)
      if (g_.ready[k]->polled_at != g_.progress) return k;
    return g_.random() % g_.ready.size();
  }
  bool is_favourite(const Warp& w) const {
    const auto blocks = static_cast<uint32_t>(g_.launch.grid.count()),
               warps = static_cast<uint32_t>(w.block->warps.size());
    if (w.block->number != favourite_ % blocks) return false;
    return options.order != Order::kWarpAhead || w.number == favourite_ / blocks % warps;
  }

  std::string whereabouts(const std::vector<std::unique_ptr<Block>>& blocks) const {
    constexpr size_t kEnough = 600;
    std::string all;
    for (auto& b : blocks)
      for (auto& w : b->warps) {
        if (w->state == State::kDone || all.size() > kEnough) continue;
        const Instruction& i = g_.kernel.code[w->fragments[0].pc - 1];
        all += "\n  block " + std::to_string(b->number) + ", warp " + std::to_string(w->number) +
               (w->state == State::kAtBarrier ? " at a barrier" : " at the cluster's barrier") + ", line " +
               std::to_string(i.line);
      }
    return all;
  }

  Grid& g_;
  uint32_t favourite_ = 0;
};

}  // namespace

void run(Module& module, Kernel& kernel, const Launch& launch) {
  Grid grid(module, kernel, launch);
  ++kernel.launches;
  ++totals.launches;
  const auto blocks = static_cast<uint32_t>(launch.grid.count());
  // Blocks that may wait for each other are all there at once; of others a few.
  const uint32_t at_once = launch.cooperative ? blocks : launch.cluster > 1 ? 2 * launch.cluster : 4;
  for (uint32_t first = 0; first < blocks; first += at_once) {
    std::vector<std::unique_ptr<Block>> resident;
    std::vector<std::unique_ptr<Cluster>> clusters;
    for (uint32_t number = first; number < std::min(first + at_once, blocks); ++number) {
      // A block without a cluster is one by itself.
      if (number % launch.cluster == 0) clusters.push_back(std::make_unique<Cluster>());
      resident.push_back(std::make_unique<Block>(grid, number, *clusters.back()));
    }
    Scheduler(grid).run(resident);
  }
  totals.instructions += grid.executed;
}

}  // namespace ptx
