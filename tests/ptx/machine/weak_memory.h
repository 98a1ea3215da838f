// Global memory by which threads of a grid talk to each other, as weak as PTX's memory model lets it be (PTX ISA 8): a
// load that nothing orders after a store may see what was there before it. Threads have vector clocks, which go on with
// their stores and barriers. A store is known to a thread that it happens before; a load sees the latest store that is
// known to it, or any later one. What a store overwrites must have been loaded before by all who may load it, as far as
// the grid itself had stored that: what was there before the grid is not looked at.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

using Clock = std::vector<uint32_t>;  // of every thread of the grid, by its number; missing ones are 0

void join(Clock& to, const Clock& from);
void tick(Clock& clock, uint32_t thread);  // whose own it is

// A thread's access to one word.
struct WeakAccess {
  uint32_t thread, block, cluster;  // of the grid
  Semantic semantic;
  Scope scope;
  Clock& clock;  // of the thread
};

class WeakMemory {
 public:
  struct Loaded {
    uint32_t value;
    bool stale;         // an older value than the last one stored
    std::string wrong;  // a data race; empty: none
  };
  Loaded load(const WeakAccess& who, uint64_t address, std::mt19937& random);
  std::string store(const WeakAccess& who, uint64_t address, uint32_t value);
  // A store that reads what is there before it, which is the last value (red, atom).
  std::string add(const WeakAccess& who, uint64_t address, uint32_t value);

 private:
  struct Access {
    uint32_t thread, block, cluster;
    uint32_t time;  // of its thread; of a store 0: it was there before the grid
    bool strong;
    Scope scope;
  };
  struct Write : Access {
    uint32_t value;
    int64_t released = -1;  // number of the clock that a release left with it
  };
  struct Read : Access {
    uint32_t seen;  // number of a write
  };

  static Access access(const WeakAccess& who);
  static bool knows(const Clock& clock, const Write& write) {
    return write.time == 0 || (write.thread < clock.size() && clock[write.thread] >= write.time);
  }
  static bool are_morally_strong(const WeakAccess& who, const Access& other);
  std::string overwritten(const WeakAccess& who, uint64_t address) const;
  std::vector<Write>& history(const WeakAccess& who, uint64_t address);

  std::unordered_map<uint64_t, std::vector<Write>> writes_;                 // of words that the grid stored to
  std::unordered_map<uint64_t, std::unordered_map<uint32_t, Read>> reads_;  // of those words, the last of each thread
  std::vector<Clock> released_;
};

}  // namespace ptx
