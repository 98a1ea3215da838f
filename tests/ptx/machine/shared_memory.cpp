#include "shared_memory.h"

#include <algorithm>
#include <cstring>

namespace ptx {
namespace {

// f(word, bits of its bytes) for all words that bytes byte .. byte + count - 1 lie in.
template <class F>
std::string for_words(uint32_t byte, uint32_t count, F f) {
  for (uint32_t word = byte / 4; word <= (byte + count - 1) / 4; ++word) {
    const uint32_t first = std::max(byte, 4 * word) - 4 * word, end = std::min(byte + count, 4 * word + 4) - 4 * word;
    std::string wrong = f(word, static_cast<uint8_t>(((1u << end) - 1) & ~((1u << first) - 1)));
    if (!wrong.empty()) return wrong;
  }
  return {};
}

}  // namespace

void Knowledge::sync(uint32_t mask, uint32_t lanes) {
  if (mask == lanes) {
    known_to_all = time++;
    return;
  }
  std::array<uint32_t, 32> all = {};
  for (size_t lane = 0; lane < 32; ++lane)
    for (size_t other = 0; mask >> lane & 1 && other < 32; ++other)
      all[other] = std::max(all[other], mask >> other & 1 ? time : known[lane][other]);
  for (size_t lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) known[lane] = all;
  ++time;
}

void Mbarrier::complete_if_due() {
  if (pending > 0 || transaction_bytes != 0) return;
  ++phase;
  pending = expected;
  arrived = arriving;
}

Mbarrier* Mbarriers::at(uint32_t byte) {
  const int i = number(byte);
  return i < 0 ? nullptr : &all_[static_cast<size_t>(i)];
}

int Mbarriers::number(uint32_t byte) const {
  for (size_t i = 0; i < all_.size(); ++i)
    if (all_[i].byte == byte) return static_cast<int>(i);
  return -1;
}

bool Mbarriers::overlap(uint32_t byte, uint32_t bytes) const {
  constexpr uint32_t kBytes = 8;
  return std::ranges::any_of(all_,
                             [&](const Mbarrier& one) { return byte < one.byte + kBytes && one.byte < byte + bytes; });
}

void SharedMemory::resize(uint32_t bytes) {
  bytes_.assign(bytes, 0xff);
  words_.assign((bytes + 3) / 4, {});
}

std::string SharedMemory::threads(const Access& access) {
  if (access.warp == kSeveral || (access.lanes & (access.lanes - 1))) return "several threads";
  return "thread " + std::to_string(32 * access.warp + __builtin_ctz(access.lanes));
}

std::string SharedMemory::race(const char* other_did, const Access& other, const char* did, uint32_t thread,
                               uint32_t byte) {
  return "a race: " + std::string(other_did) + " by " + threads(other) + ", " + did + " by thread " +
         std::to_string(thread) + ", shared byte " + std::to_string(byte) +
         ", with nothing in between that orders them";
}

// Whether earlier accesses come before what `who` does now: by a barrier of the block since, as the same thread, or by
// barriers of the warp.
bool SharedMemory::is_ordered(const Accessor& who, const Access& before) {
  if (before.epoch != who.epoch || before.time == 0) return true;
  if (before.warp != who.warp) return false;
  if (before.time <= who.knows.known_to_all) return true;
  for (uint32_t others = before.lanes & ~(1u << who.lane); others; others &= others - 1)
    if (before.time > who.knows.known[who.lane][static_cast<size_t>(__builtin_ctz(others))]) return false;
  return true;
}

// Of a word that an asynchronous store has written: whether this thread knows that it has.
std::string SharedMemory::not_waited_for(const Accessor& who, const Word& word, const char* does, uint32_t byte) {
  const auto& seen = word.remote ? who.knows.seen_in_cluster : who.knows.seen;
  const auto number = static_cast<size_t>(word.mbarrier);
  if (number < seen.size() && seen[number][who.lane] >= word.phase) return {};
  return "a race: thread " + std::to_string(who.thread) + " " + does + " shared byte " + std::to_string(byte) +
         ", which an asynchronous store " + (word.remote ? "of another block " : "") +
         "has written, without a wait for it" + (word.remote ? " that acquires at the cluster's scope" : "");
}

std::string SharedMemory::write(const Accessor& who, uint32_t byte, uint32_t count, const void* from) {
  std::string wrong = for_words(byte, count, [&](uint32_t i, uint8_t bits) -> std::string {
    Word& word = words_[i];
    word.written |= bits;
    if (!who.own_block) return {};
    if (word.mbarrier >= 0) {
      if (std::string wrong = not_waited_for(who, word, "overwrites", 4 * i); !wrong.empty()) return wrong;
    } else if (!is_ordered(who, word.write)) {
      return race("written", word.write, "written", who.thread, 4 * i);
    }
    if (!is_ordered(who, word.read)) return race("read", word.read, "written", who.thread, 4 * i);
    word.write = {who.epoch, who.knows.time, 1u << who.lane, static_cast<uint16_t>(who.warp)};
    word.mbarrier = -1;
    return {};
  });
  if (wrong.empty()) std::memcpy(bytes_.data() + byte, from, count);
  return wrong;
}

std::string SharedMemory::read(const Accessor& who, uint32_t byte, uint32_t count, void* to) {
  std::string wrong = for_words(byte, count, [&](uint32_t i, uint8_t bits) -> std::string {
    Word& word = words_[i];
    if ((word.written & bits) != bits)
      return "reads shared memory that nobody has written, byte " + std::to_string(byte);
    if (!who.own_block) return {};
    if (word.mbarrier >= 0) {
      if (std::string wrong = not_waited_for(who, word, "reads", 4 * i); !wrong.empty()) return wrong;
    } else if (!is_ordered(who, word.write)) {
      return race("written", word.write, "read", who.thread, 4 * i);
    }
    const auto warp = static_cast<uint16_t>(who.warp);
    const bool is_first = word.read.epoch != who.epoch;
    const uint32_t others = is_first ? 0 : word.read.lanes;
    word.read = {who.epoch, who.knows.time, others | 1u << who.lane,
                 is_first || word.read.warp == warp ? warp : kSeveral};
    return {};
  });
  if (wrong.empty()) std::memcpy(to, bytes_.data() + byte, count);
  return wrong;
}

std::string SharedMemory::write_async(uint32_t epoch, const Completion& with, uint32_t byte, uint32_t count,
                                      const void* from) {
  std::string wrong = for_words(byte, count, [&](uint32_t i, uint8_t bits) -> std::string {
    Word& word = words_[i];
    const auto overwrites = [&](const std::string& what) {
      return "a race: an asynchronous store overwrites shared byte " + std::to_string(4 * i) + ", which " + what;
    };
    const auto is_over = [&](const Access& before) { return before.epoch != epoch || before.time < with.heard; };
    if (!is_over(word.read)) return overwrites(threads(word.read) + " just read");
    if (word.mbarrier < 0 && !is_over(word.write)) return overwrites(threads(word.write) + " just wrote");
    if (word.mbarrier == with.mbarrier && word.phase == with.phase) return overwrites("another one of its phase wrote");
    word.mbarrier = static_cast<int8_t>(with.mbarrier);
    word.phase = with.phase;
    word.remote = with.remote;
    word.written |= bits;
    return {};
  });
  if (wrong.empty()) std::memcpy(bytes_.data() + byte, from, count);
  return wrong;
}

}  // namespace ptx
