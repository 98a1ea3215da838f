// A block's shared memory and its mbarriers, with what is needed to tell races: which thread wrote and read each word
// last, and what a lane knows to be over.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

// Shared addresses have 32 bits: a block's own memory begins at kSharedBase, that of rank r of its cluster (r + 1) <<
// kRankShift further on. Generic addresses of it begin at kSharedWindow.
constexpr uint32_t kSharedBase = 1024, kRankShift = 24;
constexpr uint64_t kSharedWindow = uint64_t{0x7e} << 56;

// What lanes of a warp know of their block's shared memory. Barriers join what their threads know.
struct Knowledge {
  uint32_t time = 1;                                    // of the warp: a tick for each of its barriers
  uint32_t known_to_all = 0;                            // until when all that its lanes did is over for all of them
  std::array<std::array<uint32_t, 32>, 32> known = {};  // [lane][other]: and what that other one did, for this one
  // Of a block of one thread, which has no need of barriers: until when, by their times, what the blocks of the cluster
  // did is over, from the asynchronous stores that it has waited for. By rank; missing ones are 0.
  std::vector<uint32_t> heard;
  // [mbarrier][lane]: phases whose completion the lane has observed, by a wait of any scope, and by one of the
  // cluster's. Only the latter orders it after stores of other blocks (8.9.5 Causality Order: morally strong).
  std::vector<std::array<uint32_t, 32>> seen, seen_in_cluster;

  void sync(uint32_t mask, uint32_t lanes);  // by a barrier of the warp, among these of its lanes
};

// PTX ISA 9.7.13.15 (mbarrier).
struct Mbarrier {
  uint32_t byte;  // where it lies
  int32_t expected, pending, transaction_bytes = 0;
  uint32_t phase = 0;                       // phases that are complete
  std::vector<uint32_t> arriving, arrived;  // what came with stores (Knowledge::heard), until now and until that phase

  void complete_if_due();
};

class Mbarriers {
 public:
  static constexpr int32_t kMostCount = (1 << 20) - 1;

  Mbarrier* at(uint32_t byte);
  int number(uint32_t byte) const;                    // -1: there is none
  bool overlap(uint32_t byte, uint32_t bytes) const;  // what lies there
  void add(uint32_t byte, int32_t count) { all_.push_back({.byte = byte, .expected = count, .pending = count}); }
  size_t size() const { return all_.size(); }

 private:
  std::vector<Mbarrier> all_;
};

// Who accesses shared memory, and what it knows.
struct Accessor {
  bool own_block;  // else a block of the cluster, of which only initialisation is checked
  uint32_t thread, lane, warp;
  uint32_t epoch;  // of the block: barriers that all of it has passed
  const Knowledge& knows;
};

class SharedMemory {
 public:
  void resize(uint32_t bytes);
  uint32_t size() const { return static_cast<uint32_t>(bytes_.size()); }

  // Of bytes that lie inside. Returns what is wrong with the access, empty when nothing is.
  std::string read(const Accessor& who, uint32_t byte, uint32_t count, void* to);
  std::string write(const Accessor& who, uint32_t byte, uint32_t count, const void* from);
  // An asynchronous store, which completes with `phase` of the mbarrier of this number. `epoch`: of the block.
  struct Completion {
    int mbarrier;
    uint32_t phase;
    bool remote;
    uint32_t heard;  // until when what a block of one thread did is over for the sender
  };
  std::string write_async(uint32_t epoch, const Completion& with, uint32_t byte, uint32_t count, const void* from);

 private:
  static constexpr uint16_t kSeveral = 0xffff;

  // The last accesses of a kind, in one epoch of the block.
  struct Access {
    uint32_t epoch = 0, time = 0;  // of the block and of the warp; 0: there was none
    uint32_t lanes = 0;
    uint16_t warp = 0;  // or kSeveral
  };
  struct Word {
    Access read, write;
    uint8_t written = 0;   // a bit for each byte that was ever written
    int8_t mbarrier = -1;  // of the asynchronous store that wrote it last; -1: none did
    bool remote = false;
    uint32_t phase = 0;
  };

  static bool is_ordered(const Accessor& who, const Access& before);
  static std::string not_waited_for(const Accessor& who, const Word& word, const char* does, uint32_t byte);
  static std::string threads(const Access& access);
  static std::string race(const char* other_did, const Access& other, const char* did, uint32_t thread, uint32_t byte);

  std::vector<unsigned char> bytes_;
  std::vector<Word> words_;
};

}  // namespace ptx
