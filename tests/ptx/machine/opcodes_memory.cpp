// Loads, stores and reductions: PTX ISA 9.7.9 (Data Movement), of the address spaces of 5.1.
#include <algorithm>

#include "access.h"
#include "allocations.h"
#include "opcodes.h"
#include "registers.h"
#include "traffic.h"

namespace ptx {

uint64_t address_of(const Warp& w, const Instruction& i, int lane, int which, int operand) {
  const uint64_t base =
      i.wide_address[which] ? get<uint64_t>(w, i.s[operand], lane) : get<uint32_t>(w, i.s[operand], lane);
  return base + static_cast<uint64_t>(i.offset[which]);
}

void check_alignment(const Warp& w, const Instruction& i, uint64_t address, uint32_t bytes) {
  if (address % bytes)
    fail_at(w, i, "misaligned: address " + std::to_string(address) + " for " + std::to_string(bytes) + " bytes");
}

// The block and the byte of its shared memory.
SharedPlace shared_place(const Warp& w, const Instruction& i, uint64_t address, uint32_t bytes) {
  Block* block = w.block;
  uint64_t local = address;
  if (address >> kRankShift) {
    const uint64_t rank = (address >> kRankShift) - 1;
    if (rank >= block->cluster->blocks.size())
      fail_at(w, i, "shared memory of a rank that is not there: address " + std::to_string(address));
    block = block->cluster->blocks[rank];
    local = address & ((1u << kRankShift) - 1);
  }
  if (local < kSharedBase || local + bytes > kSharedBase + block->shared.size())
    fail_at(w, i,
            "outside of shared memory: byte " + std::to_string(static_cast<int64_t>(local) - kSharedBase) + " of " +
                std::to_string(block->shared.size()));
  if (block->alive == 0) fail_at(w, i, "shared memory of a block that has ended");
  return {block, static_cast<uint32_t>(local - kSharedBase)};
}

namespace {

enum class Space { kGlobal, kShared, kGeneric, kParameter };

Accessor accessor(const Warp& w, const Block& block, int lane) {
  const auto l = static_cast<uint32_t>(lane);
  return {&block == w.block, w.thread(l), l, w.number, block.epoch, w.knows};
}

WeakAccess weak_access(Warp& w, const Instruction& i, int lane) {
  const auto l = static_cast<uint32_t>(lane);
  const Block& b = *w.block;
  return {w.grid_thread(l), b.number, b.number / b.grid->launch.cluster, i.semantic, i.scope, w.clocks[l]};
}

// A place in memory, found and checked once for reading and writing.
struct Target {
  Block* block;      // of shared memory; null: global
  uint32_t byte;     // there
  uint64_t address;  // of global memory
};

void check_global(const Warp& w, const Instruction& i, uint64_t address, uint32_t bytes) {
  // Nearly every access of an instruction lies in the same array as the one before.
  static thread_local Allocations::Range last;
  if (last.generation != allocations().generation() || address < last.begin || address >= last.end) {
    const auto found = allocations().find(address);
    if (!found) fail_at(w, i, "outside of global memory: " + allocations().describe(address));
    last = *found;
  }
  if (address + bytes > last.end) fail_at(w, i, "across the end of an allocation in global memory");
}

template <Space space>
Target target_of(const Warp& w, const Instruction& i, int lane, uint32_t bytes) {
  const uint64_t address = address_of(w, i, lane, 0, 0);
  check_alignment(w, i, address, bytes);
  const bool in_window = space == Space::kGeneric && address >= kSharedWindow;
  if (space == Space::kShared || in_window) {
    const SharedPlace place = shared_place(w, i, in_window ? address - kSharedWindow : address, bytes);
    return {place.block, place.byte, 0};
  }
  check_global(w, i, address, bytes);
  return {nullptr, 0, address};
}

void fail_if(const std::string& wrong, const Warp& w, const Instruction& i) {
  if (!wrong.empty()) fail_at(w, i, wrong);
}

void read_parameter(const Warp& w, const Instruction& i, int lane, uint32_t bytes, void* to) {
  const uint64_t address = address_of(w, i, lane, 0, 0);
  const auto& all = w.block->grid->launch.parameters;
  check_alignment(w, i, address, bytes);
  if (address + bytes > all.size()) fail_at(w, i, "outside of the parameters");
  std::memcpy(to, all.data() + address, bytes);
}

void read(Warp& w, const Instruction& i, int lane, const Target& from, uint32_t bytes, unsigned char* to) {
  if (from.block) return fail_if(from.block->shared.read(accessor(w, *from.block, lane), from.byte, bytes, to), w, i);
  // What is smaller than a word is never used to talk to other threads.
  if (!options.weak || bytes < 4) {
    std::memcpy(to, reinterpret_cast<const void*>(from.address), bytes);
    return;
  }
  Grid& grid = *w.block->grid;
  for (uint32_t k = 0; k < bytes; k += 4) {
    const auto loaded = grid.weak.load(weak_access(w, i, lane), from.address + k, grid.random);
    fail_if(loaded.wrong, w, i);
    totals.stale += loaded.stale;
    std::memcpy(to + k, &loaded.value, 4);
  }
}

void write(Warp& w, const Instruction& i, int lane, const Target& to, uint32_t bytes, const unsigned char* from) {
  if (to.block && to.block->mbarriers.overlap(to.byte, bytes)) fail_at(w, i, "a store over an mbarrier");
  if (to.block) return fail_if(to.block->shared.write(accessor(w, *to.block, lane), to.byte, bytes, from), w, i);
  if (!options.weak || bytes < 4) {
    std::memcpy(reinterpret_cast<void*>(to.address), from, bytes);
    return;
  }
  for (uint32_t k = 0; k < bytes; k += 4) {
    uint32_t value;
    std::memcpy(&value, from + k, 4);
    fail_if(w.block->grid->weak.store(weak_access(w, i, lane), to.address + k, value), w, i);
  }
}

// 9.7.9.8 ld. Registers wider than the type are filled with zeros, or with the sign (table 28).
template <Space space, class T, int kCount>
void load(Warp& w, const Instruction& i, uint32_t mask) {
  constexpr uint32_t kBytes = sizeof(T) * kCount;
  if constexpr (space != Space::kParameter)
    if (options.traffic) note_traffic(w, i, mask, space == Space::kShared, kBytes);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    T values[kCount];
    auto* const to = reinterpret_cast<unsigned char*>(values);
    if constexpr (space == Space::kParameter)
      read_parameter(w, i, lane, kBytes, to);
    else
      read(w, i, lane, target_of<space>(w, i, lane, kBytes), kBytes, to);
    for (int k = 0; k < kCount; ++k) {
      if (i.d[k] == kNone) continue;
      if constexpr (sizeof(T) >= 4)
        put<T>(w, i.d[k], lane, values[k]);
      else
        put<uint32_t>(w, i.d[k], lane, static_cast<uint32_t>(static_cast<int32_t>(values[k])));
    }
  }
}

// 9.7.9.11 st: the low bits of wider registers.
template <Space space, class T, int kCount>
void store(Warp& w, const Instruction& i, uint32_t mask) {
  constexpr uint32_t kBytes = sizeof(T) * kCount;
  w.block->grid->note_progress();
  if (i.semantic != Semantic::kWeak && w.block->falls_silent()) return;
  if (options.traffic) note_traffic(w, i, mask, space == Space::kShared, kBytes);
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    T values[kCount];
    for (int k = 0; k < kCount; ++k) values[k] = get<T>(w, i.s[1 + k], lane);
    write(w, i, lane, target_of<space>(w, i, lane, kBytes), kBytes, reinterpret_cast<const unsigned char*>(values));
  }
}

// 9.7.13.5 atom.add, 9.7.13.6 red.add, of unsigned words in global memory.
template <Space space, bool kReturns>
void add_to_memory(Warp& w, const Instruction& i, uint32_t mask) {
  w.block->grid->note_progress();
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const Target to = target_of<space>(w, i, lane, 4);
    if (to.block) fail_at(w, i, "an atomic addition in shared memory is not supported");
    const auto value = get<uint32_t>(w, i.s[1], lane);
    auto& word = *reinterpret_cast<uint32_t*>(to.address);
    const uint32_t before = word;
    if (options.weak)
      fail_if(w.block->grid->weak.add(weak_access(w, i, lane), to.address, value), w, i);
    else
      word += value;
    if constexpr (kReturns) put(w, i.d[0], lane, before);
  }
}

template <class T, int kCount>
void add_accesses(Opcodes& all, const std::string& type) {
  // A load of memory that others change at the same time is a look: whoever takes one lets others go on.
  constexpr auto kLook = Kind::kPoll;
  constexpr int z = sizeof(T) == 8 ? 8 : 4;
  all.add("ld.param." + type, load<Space::kParameter, T, kCount>, {8});
  all.add("ld." + type, load<Space::kGeneric, T, kCount>, {8});
  all.add("ld.global." + type, load<Space::kGlobal, T, kCount>, {8});
  all.add("ld.global.nc." + type, load<Space::kGlobal, T, kCount>, {8});
  all.add("ld.shared." + type, load<Space::kShared, T, kCount>, {8});
  all.add("ld.volatile.shared." + type, load<Space::kShared, T, kCount>, {8});
  all.add("ld.shared::cluster." + type, load<Space::kShared, T, kCount>, {8});
  all.add("st." + type, store<Space::kGeneric, T, kCount>, {8, z, z, z, z});
  all.add("st.global." + type, store<Space::kGlobal, T, kCount>, {8, z, z, z, z});
  all.add("st.shared." + type, store<Space::kShared, T, kCount>, {8, z, z, z, z});
  all.add("st.volatile.shared." + type, store<Space::kShared, T, kCount>, {8, z, z, z, z});
  all.add("st.shared::cluster." + type, store<Space::kShared, T, kCount>, {8, z, z, z, z});
  if constexpr (sizeof(T) >= 4)
    for (const std::string scope : {"cta", "cluster", "gpu", "sys"}) {
      all.add("ld.relaxed." + scope + ".global." + type, load<Space::kGlobal, T, kCount>, {8}, Kind::kPlain);
      all.add("st.relaxed." + scope + ".global." + type, store<Space::kGlobal, T, kCount>, {8, z, z, z, z});
      if (kCount > 1) continue;
      all.add("ld.acquire." + scope + ".global." + type, load<Space::kGlobal, T, kCount>, {8}, kLook);
      all.add("st.release." + scope + ".global." + type, store<Space::kGlobal, T, kCount>, {8, z, z, z, z});
    }
  all.add("ld.volatile.global." + type, load<Space::kGlobal, T, kCount>, {8}, kLook);
  all.add("ld.volatile." + type, load<Space::kGeneric, T, kCount>, {8}, kLook);
  all.add("st.volatile.global." + type, store<Space::kGlobal, T, kCount>, {8, z, z, z, z});
  all.add("st.volatile." + type, store<Space::kGeneric, T, kCount>, {8, z, z, z, z});
}

template <class T>
void add_vectors(Opcodes& all, const std::string& type) {
  add_accesses<T, 1>(all, type);
  add_accesses<T, 2>(all, "v2." + type);
  if constexpr (sizeof(T) <= 4) add_accesses<T, 4>(all, "v4." + type);
}

}  // namespace

void add_memory(Opcodes& all) {
  add_vectors<uint8_t>(all, "u8"), add_vectors<int8_t>(all, "s8"), add_vectors<uint8_t>(all, "b8");
  add_vectors<uint16_t>(all, "u16"), add_vectors<int16_t>(all, "s16"), add_vectors<uint16_t>(all, "b16");
  add_vectors<uint32_t>(all, "u32"), add_vectors<int32_t>(all, "s32"), add_vectors<uint32_t>(all, "b32");
  add_vectors<uint64_t>(all, "u64"), add_vectors<int64_t>(all, "s64"), add_vectors<uint64_t>(all, "b64");
  add_vectors<float>(all, "f32"), add_vectors<double>(all, "f64");
  for (const std::string semantic : {"relaxed", "release"})
    for (const std::string scope : {"cta", "cluster", "gpu", "sys"})
      all.add("red." + semantic + "." + scope + ".global.add.u32", add_to_memory<Space::kGlobal, false>, {8, 4});
  // As cooperative groups have them.
  all.add("ld.acquire.gpu.u32", load<Space::kGeneric, uint32_t, 1>, {8}, Kind::kPoll);
  all.add("atom.add.release.gpu.u32", add_to_memory<Space::kGeneric, true>, {8, 4});
}

}  // namespace ptx
