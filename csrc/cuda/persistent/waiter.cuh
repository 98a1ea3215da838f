// A thread that waits, and gives up in the end (watch.h).
#pragma once
#include "cuda/device/device.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

// Of one wait. Nothing of it is touched where what is waited for is there at the first look.
struct Looks {
  unsigned count = 0;
  uint64_t since = 0;  // nanoseconds; 0: no look at the clock yet
};

class Waiter {
 public:
  // `group`: of all that the pass has.
  FUSED_RNN_DEVICE Waiter(const Watch& watch, Blocks blocks, bool back, int group, int rank)
      : watch_(watch),
        who_{Report::kIsThere | (back ? Report::kIsBack : 0) | uint64_t(blocks) << Report::kBlocks |
             uint64_t(group & 0xfffff) << Report::kGroup | uint64_t(rank) << Report::kRank} {}

  // Whoever has given up waits for nothing any more, nor does anyone else in this call, even where all is well.
  FUSED_RNN_DEVICE bool has_given_up() const { return given_up_; }
  FUSED_RNN_DEVICE void stop() { given_up_ = true; }

  // Stands in every loop that waits, after a look in vain: whether to look again. `step`: that it waits for.
  FUSED_RNN_DEVICE bool looks_again(Looks& looks, int step, unsigned nanoseconds = 0) {
    constexpr unsigned kLooksBetween = 64;  // at the clock, and whether others have given up
    if (given_up_) return false;
    keep_polling(nanoseconds);
    if (++looks.count % kLooksBetween > 0) return true;
    const uint64_t now = global_nanoseconds();
    if (looks.since == 0) looks.since = now;
    if (others_have())  // first, so that one of them reports
      given_up_ = true;
    else if (static_cast<int64_t>(now - looks.since) > static_cast<int64_t>(watch_.nanoseconds))
      give_up(step);
    return !given_up_;
  }

 private:
  FUSED_RNN_DEVICE bool others_have() const {
    Pack<1> word;
    load_relaxed(word, watch_.given_up);
    return word.word[0] != 0;
  }
  FUSED_RNN_DEVICE void give_up(int step) {
    *static_cast<volatile unsigned long long*>(watch_.report) = who_.word | static_cast<uint32_t>(step);
    store_relaxed(watch_.given_up, Pack<1>{1});
    given_up_ = true;
  }

  const Watch& watch_;
  Report who_;
  bool given_up_ = false;
};

}  // namespace
}  // namespace fused_rnn::cuda
