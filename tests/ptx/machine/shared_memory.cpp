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

void Mbarrier::complete_if_due() {
  if (pending > 0 || transaction_bytes != 0) return;
  ++phase;
  pending = expected;
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

void SharedMemory::resize(uint32_t bytes) {
  bytes_.assign(bytes, 0xff);
  words_.assign((bytes + 3) / 4, {});
}

std::string SharedMemory::race(const char* other_did, uint16_t other, const char* did, uint32_t thread, uint32_t byte) {
  const std::string who = other == kMany ? "several threads" : "thread " + std::to_string(other);
  return "a race: " + std::string(other_did) + " by " + who + ", " + did + " by thread " + std::to_string(thread) +
         ", shared byte " + std::to_string(byte) + ", with nothing in between that orders them";
}

// Whether an earlier access comes before what `who` does now: by a barrier of the block since, as the same thread, or by
// a barrier of the warp.
bool SharedMemory::is_ordered(const Accessor& who, uint32_t epoch, uint16_t thread, uint16_t warp,
                              uint32_t warp_epoch) {
  if (epoch != who.epoch || thread == who.thread) return true;
  return warp == who.warp && warp_epoch != who.knows.warp_epoch;
}

std::string SharedMemory::write(const Accessor& who, uint32_t byte, uint32_t count, const void* from) {
  std::string wrong = for_words(byte, count, [&](uint32_t i, uint8_t bits) -> std::string {
    Word& word = words_[i];
    word.written |= bits;
    if (!who.own_block) return {};
    const auto writer_warp = static_cast<uint16_t>(word.writer / 32);
    if (word.mbarrier < 0 && !is_ordered(who, word.write_epoch, word.writer, writer_warp, word.write_warp_epoch))
      return race("written", word.writer, "written", who.thread, 4 * i);
    if (!is_ordered(who, word.read_epoch, word.reader, word.read_warp, word.read_warp_epoch))
      return race("read", word.reader, "written", who.thread, 4 * i);
    word.write_epoch = who.epoch;
    word.write_warp_epoch = who.knows.warp_epoch;
    word.writer = static_cast<uint16_t>(who.thread);
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
      const auto& seen = word.remote ? who.knows.seen_in_cluster : who.knows.seen;
      const auto number = static_cast<size_t>(word.mbarrier);
      const uint32_t known = number < seen.size() ? seen[number][who.lane] : 0;
      if (known < word.phase)
        return "a race: thread " + std::to_string(who.thread) + " reads shared byte " + std::to_string(4 * i) +
               ", which an asynchronous store " + (word.remote ? "of another block " : "") +
               "has written, without a wait for it" + (word.remote ? " that acquires at the cluster's scope" : "");
    } else if (!is_ordered(who, word.write_epoch, word.writer, static_cast<uint16_t>(word.writer / 32),
                           word.write_warp_epoch)) {
      return race("written", word.writer, "read", who.thread, 4 * i);
    }
    const bool others = word.read_epoch == who.epoch && word.reader != who.thread;
    const auto warp = static_cast<uint16_t>(who.warp);
    word.read_warp = others && word.read_warp != warp ? kMany : warp;
    word.reader = others ? kMany : static_cast<uint16_t>(who.thread);
    word.read_epoch = who.epoch;
    word.read_warp_epoch = who.knows.warp_epoch;
    return {};
  });
  if (wrong.empty()) std::memcpy(to, bytes_.data() + byte, count);
  return wrong;
}

std::string SharedMemory::write_async(uint32_t epoch, const Completion& with, uint32_t byte, uint32_t count,
                                      const void* from) {
  std::string wrong = for_words(byte, count, [&](uint32_t i, uint8_t bits) -> std::string {
    Word& word = words_[i];
    if (word.read_epoch == epoch)
      return "a race: an asynchronous store overwrites shared byte " + std::to_string(4 * i) + ", which " +
             (word.reader == kMany ? "several threads have" : "thread " + std::to_string(word.reader) + " has") +
             " just read";
    word.mbarrier = static_cast<int8_t>(with.mbarrier);
    word.phase = with.phase;
    word.remote = with.remote;
    word.write_epoch = epoch;
    word.written |= bits;
    return {};
  });
  if (wrong.empty()) std::memcpy(bytes_.data() + byte, from, count);
  return wrong;
}

}  // namespace ptx
