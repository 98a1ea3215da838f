#include "allocations.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>

#include "graphs.h"

namespace ptx {
namespace {

constexpr size_t kAlignment = 256, kFence = kAlignment;

std::atomic<bool> filled = false;

}  // namespace

void Allocations::add(const void* begin, size_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto address = reinterpret_cast<uint64_t>(begin);
  all_[address] = address + bytes;
}

void Allocations::remove(const void* begin) {
  const std::lock_guard lock(mutex_);
  all_.erase(reinterpret_cast<uint64_t>(begin));
  ++generation_;
}

std::optional<Allocations::Range> Allocations::find(uint64_t address) const {
  const std::lock_guard lock(mutex_);
  const auto after = all_.upper_bound(address);
  if (after == all_.begin()) return {};
  const auto& [begin, end] = *std::prev(after);
  if (address >= end) return {};
  return Range{begin, end, generation()};
}

std::string Allocations::describe(uint64_t address) const {
  const std::lock_guard lock(mutex_);
  const auto after = all_.upper_bound(address);
  const auto says = [](uint64_t bytes, const char* where, const auto& range) {
    const uint64_t size = range.second - range.first;
    return std::to_string(bytes) + " bytes " + where + " an allocation of " + std::to_string(size) + " bytes";
  };
  if (all_.empty()) return "none is allocated";
  if (after == all_.begin()) return says(after->first - address, "before", *after);
  const auto& before = *std::prev(after);
  if (after != all_.end() && after->first - address < address - before.second)
    return says(after->first - address, "before", *after);
  return says(address - before.second, "past the end of", before);
}

// Never destroyed: tensors may outlive whatever else is.
Allocations& allocations() {
  static Allocations& only = *new Allocations;
  return only;
}

void* allocate_fenced(size_t bytes) {
  auto* const all = static_cast<char*>(std::aligned_alloc(kAlignment, (bytes + 3 * kFence - 1) / kFence * kFence));
  if (!all) throw std::bad_alloc();
  char* const memory = all + kFence;
  if (filled) std::memset(memory, 0xff, bytes);
  allocations().add(memory, bytes);
  note_allocation(memory);
  return memory;
}

void free_fenced(void* memory) {
  if (!memory || keeps(memory)) return;
  allocations().remove(memory);
  std::free(static_cast<char*>(memory) - kFence);
}

void fill_allocations(bool fill) { filled = fill; }

}  // namespace ptx

// What the operators themselves allocate so (csrc/ops/memory.cpp); this module's own, not the whole program's.
void* operator new(size_t bytes, std::align_val_t) { return ptx::allocate_fenced(bytes); }
void* operator new(size_t bytes, std::align_val_t, const std::nothrow_t&) noexcept {
  return ptx::allocate_fenced(bytes);
}
void operator delete(void* memory, std::align_val_t) noexcept { ptx::free_fenced(memory); }
