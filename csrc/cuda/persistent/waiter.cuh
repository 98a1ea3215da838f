// A bounded wait: a thread polls, and gives up after a timeout (watch.h).
#pragma once
#include "cuda/device/device.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

// The state of one wait. Not touched if the first poll succeeds.
struct Polls {
  unsigned count = 0;
  uint64_t since = 0;  // nanoseconds; 0: the clock has not been read yet
};

class Waiter {
 public:
  // `group`: of all that the pass has.
  FUSED_RNN_DEVICE Waiter(const Watch& watch, Blocks blocks, bool back, int group, int rank)
      : watch_(watch),
        who_{Report::kIsThere | (back ? Report::kIsBack : 0) | uint64_t(blocks) << Report::kBlocks |
             uint64_t(group & 0xfffff) << Report::kGroup | uint64_t(rank) << Report::kRank} {}

  // After a timeout, a thread's own or another's, nothing in this call is waited for any more.
  FUSED_RNN_DEVICE bool has_given_up() const { return given_up_; }
  FUSED_RNN_DEVICE void stop() { given_up_ = true; }

  // Called in every loop that waits, after a poll that failed: whether to poll again. `step`: the one waited for.
  FUSED_RNN_DEVICE bool keep_waiting(Polls& polls, int step, unsigned nanoseconds = 0) {
    constexpr unsigned kPollsBetween = 64;  // checks of the clock and of the abort word
    if (given_up_) return false;
    keep_polling(nanoseconds);
    if (++polls.count % kPollsBetween > 0) return true;
    const uint64_t now = global_nanoseconds();
    if (polls.since == 0) polls.since = now;
    if (others_gave_up())  // first, so that one of them reports
      given_up_ = true;
    else if (static_cast<int64_t>(now - polls.since) > static_cast<int64_t>(watch_.nanoseconds))
      give_up(step);
    return !given_up_;
  }

 private:
  FUSED_RNN_DEVICE bool others_gave_up() const {
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
