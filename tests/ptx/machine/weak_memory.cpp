#include "weak_memory.h"

#include <algorithm>
#include <cstring>

namespace ptx {

void join(Clock& to, const Clock& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

// PTX ISA 8.7.1 (Morally strong operations): both strong, each within the other's scope. Overlap is complete here, as
// accesses are cut into words.
bool WeakMemory::are_morally_strong(const WeakAccess& who, const Write& write) {
  if (who.semantic == Semantic::kWeak || !write.strong) return false;
  const Scope least = std::min(who.scope, write.scope);
  if (least == Scope::kBlock) return who.block == write.block;
  if (least == Scope::kCluster) return who.cluster == write.cluster;
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
  uint32_t& last = last_seen_[address][who.thread];
  size_t least = last, chosen = all.size() - 1;
  for (size_t k = chosen; k > least; --k)
    if (knows(who.clock, all[k])) least = k;
  for (size_t k = least + 1; k < all.size(); ++k)
    if (!are_morally_strong(who, all[k]))
      return {0, false, "a data race in global memory: thread " + std::to_string(all[k].thread) +
                            " of the grid stores what thread " + std::to_string(who.thread) + " loads"};
  if (chosen > least && random() % 4 > 0) chosen = least + random() % (all.size() - least);
  last = static_cast<uint32_t>(chosen);
  const Write& write = all[chosen];
  if (who.semantic == Semantic::kAcquire && write.released >= 0 && are_morally_strong(who, write))
    join(who.clock, released_[static_cast<size_t>(write.released)]);
  return {write.value, chosen + 1 < all.size(), {}};
}

std::vector<WeakMemory::Write>& WeakMemory::history(const WeakAccess& who, uint64_t address) {
  auto& all = writes_[address];
  if (all.empty()) {
    Write first = {0, who.thread, who.block, who.cluster, 0, true, Scope::kGpu};
    std::memcpy(&first.value, reinterpret_cast<const void*>(address), 4);
    all.push_back(first);
  }
  return all;
}

std::string WeakMemory::store(const WeakAccess& who, uint64_t address, uint32_t value) {
  auto& all = history(who, address);
  if (who.clock.size() <= who.thread) who.clock.resize(who.thread + 1);
  if (!knows(who.clock, all.back()) && !are_morally_strong(who, all.back()))
    return "a data race in global memory: threads " + std::to_string(all.back().thread) + " and " +
           std::to_string(who.thread) + " of the grid store to the same word";
  const bool strong = who.semantic != Semantic::kWeak;
  Write write = {value, who.thread, who.block, who.cluster, ++who.clock[who.thread], strong, who.scope};
  if (who.semantic == Semantic::kRelease) {
    write.released = static_cast<int64_t>(released_.size());
    released_.push_back(who.clock);
  }
  last_seen_[address][who.thread] = static_cast<uint32_t>(all.size());
  all.push_back(write);
  std::memcpy(reinterpret_cast<void*>(address), &value, 4);
  return {};
}

// A read-modify-write continues the release sequence that it reads from (8.9.1.1): who acquires its value acquires
// theirs too.
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
