#include "weak_memory.h"

#include <algorithm>
#include <cstring>

namespace ptx {

void join(Clock& to, const Clock& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

void tick(Clock& clock, uint32_t thread) {
  if (clock.size() <= thread) clock.resize(thread + 1);
  ++clock[thread];
}

WeakMemory::Access WeakMemory::access(const WeakAccess& who) {
  const uint32_t time = who.thread < who.clock.size() ? who.clock[who.thread] : 0;
  return {who.thread, who.block, who.cluster, time, who.semantic != Semantic::kWeak, who.scope};
}

// PTX ISA 8.7 (Morally Strong Operations): both strong, each within the other's scope. Overlap is complete here, as
// accesses are cut into words.
bool WeakMemory::are_morally_strong(const WeakAccess& who, const Access& other) {
  if (who.semantic == Semantic::kWeak || !other.strong) return false;
  const Scope least = std::min(who.scope, other.scope);
  if (least == Scope::kBlock) return who.block == other.block;
  if (least == Scope::kCluster) return who.cluster == other.cluster;
  return true;
}

WeakMemory::Loaded WeakMemory::load(const WeakAccess& who, uint64_t address, std::mt19937& random) {
  const auto found = writes_.find(address);
  if (found == writes_.end()) {
    Loaded loaded = {};
    std::memcpy(&loaded.value, reinterpret_cast<const void*>(address), 4);
    return loaded;
  }
  const std::vector<Write>& all = found->second;
  Read& last = reads_[address].try_emplace(who.thread, Read{access(who), 0}).first->second;
  size_t least = last.seen, chosen = all.size() - 1;
  for (size_t k = chosen; k > least; --k)
    if (knows(who.clock, all[k])) least = k;
  for (size_t k = least + 1; k < all.size(); ++k)
    if (!are_morally_strong(who, all[k]))
      return {0, false,
              "a data race in global memory: thread " + std::to_string(all[k].thread) +
                  " of the grid stores what thread " + std::to_string(who.thread) + " loads"};
  if (chosen > least && random() % 4 > 0) chosen = least + random() % (all.size() - least);
  last = {access(who), static_cast<uint32_t>(chosen)};
  const Write& write = all[chosen];
  if (who.semantic == Semantic::kAcquire && write.released >= 0 && are_morally_strong(who, write))
    join(who.clock, released_[static_cast<size_t>(write.released)]);
  return {write.value, chosen + 1 < all.size(), {}};
}

std::vector<WeakMemory::Write>& WeakMemory::history(const WeakAccess& who, uint64_t address) {
  auto& all = writes_[address];
  if (all.empty()) {
    Write first = {{who.thread, who.block, who.cluster, 0, true, Scope::kGpu}, 0};
    std::memcpy(&first.value, reinterpret_cast<const void*>(address), 4);
    all.push_back(first);
  }
  return all;
}

// By a store: what others have loaded before, but not so that they are known to have.
std::string WeakMemory::overwritten(const WeakAccess& who, uint64_t address) const {
  const auto all = reads_.find(address);
  if (all == reads_.end()) return {};
  for (const auto& [thread, read] : all->second) {
    const bool is_known = thread < who.clock.size() && who.clock[thread] > read.time;
    if (thread != who.thread && !is_known && !are_morally_strong(who, read))
      return "a data race in global memory: thread " + std::to_string(who.thread) +
             " of the grid stores over what thread " + std::to_string(thread) + " loads";
  }
  return {};
}

std::string WeakMemory::store(const WeakAccess& who, uint64_t address, uint32_t value) {
  auto& all = history(who, address);
  if (!knows(who.clock, all.back()) && !are_morally_strong(who, all.back()))
    return "a data race in global memory: threads " + std::to_string(all.back().thread) + " and " +
           std::to_string(who.thread) + " of the grid store to the same word";
  if (std::string wrong = overwritten(who, address); !wrong.empty()) return wrong;
  const Access before = access(who);
  tick(who.clock, who.thread);
  Write write = {access(who), value};
  if (who.semantic == Semantic::kRelease) {
    write.released = static_cast<int64_t>(released_.size());
    released_.push_back(who.clock);
  }
  reads_[address].insert_or_assign(who.thread, Read{before, static_cast<uint32_t>(all.size())});
  all.push_back(write);
  std::memcpy(reinterpret_cast<void*>(address), &value, 4);
  return {};
}

// A read-modify-write continues the release sequence that it reads from (8.9.2 Observation Order): who acquires its
// value acquires theirs too.
std::string WeakMemory::add(const WeakAccess& who, uint64_t address, uint32_t value) {
  const Write before = history(who, address).back();
  std::string wrong = store(who, address, before.value + value);
  if (!wrong.empty() || before.released < 0) return wrong;
  Write& now = writes_[address].back();
  Clock both = released_[static_cast<size_t>(before.released)];
  if (now.released >= 0) join(both, released_[static_cast<size_t>(now.released)]);
  now.released = static_cast<int64_t>(released_.size());
  released_.push_back(std::move(both));
  return {};
}

}  // namespace ptx
