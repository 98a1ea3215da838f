// How the machine behaves, of what PTX leaves open: set by tests, the same for all launches that follow.
#pragma once
#include <cstdint>

namespace ptx {

// Which warp runs next, and which of its lanes where they have parted. A GPU promises none of these orders, so a
// kernel must be right in every one of them.
enum class Order : uint8_t {
  kInTurn,       // warps one after the other, asynchronous stores at once
  kShuffled,     // warps at random, asynchronous stores late and in any order; likewise below
  kAdversarial,  // and lanes that have parted do not meet again unless they must
  kBlockAhead,   // one block runs as far as it can before others do
  kWarpAhead,    // one warp does
  kBlockBehind,  // one block runs only where all others wait
};
constexpr uint32_t kOrders = 6;

struct Options {
  uint32_t seed = 0;
  Order order = Order::kShuffled;
  bool weak = false;      // loads from global memory may see older values (weak_memory.h)
  bool rough = false;     // approximate instructions are as far off as PTX lets them be
  bool traffic = false;   // bank conflicts and sectors are counted
  uint64_t patience = 0;  // instructions without progress until a launch is given up; 0: chosen by the grid's size
};

extern Options options;

// A block that falls silent, as one that hangs or was never started: from so many of its publications on (strong stores
// to global memory, asynchronous ones), what it publishes is lost.
struct Silence {
  int64_t block = -1;  // of every grid; -1: none
  uint64_t after = 0;
};
extern Silence silence;

// A block of every grid that is held up: it goes on only where no other one can, and then asynchronous stores take long
// to arrive; -1: none.
extern int64_t held_up;

}  // namespace ptx
