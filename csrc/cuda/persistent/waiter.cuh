// Bounded waits: a thread polls, and gives up after a timeout (watch.h). Their loops are unrolled, many in a kernel, so
// a timeout is reported behind them, once a step.
#pragma once
#include "cuda/device/device.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

// When a wait first looked at the clock, in nanoseconds.
struct FirstLook {
  uint64_t at = ~uint64_t{0};
};

class Waiter {
 public:
  // `group`: of all that the pass has.
  FUSED_RNN_DEVICE Waiter(const Watch& watch, Blocks blocks, bool back, int group, int rank)
      : watch_(watch),
        who_{Report::kIsThere | (back ? Report::kIsBack : 0) | uint64_t(blocks) << Report::kBlocks |
             uint64_t(group & 0xfffff) << Report::kGroup | uint64_t(rank) << Report::kRank} {}

  // Before the waits of a step.
  FUSED_RNN_DEVICE void begin_step() { polls_left_ = kPollsBetween; }

  // After a timeout, a thread's own or another's, nothing in this call is waited for any more.
  FUSED_RNN_DEVICE bool has_given_up() const { return polls_left_ <= 0; }
  FUSED_RNN_DEVICE void stop() { polls_left_ = 0; }

  // Called in every loop that waits, after a poll that failed: whether to poll again.
  FUSED_RNN_DEVICE bool keep_waiting(FirstLook& first, unsigned nanoseconds = 0) {
    keep_polling(nanoseconds);
    if (--polls_left_ == 0) {
      const uint64_t now = global_nanoseconds();
      first.at = now < first.at ? now : first.at;
      const bool is_late = now - first.at > watch_.nanoseconds;
      polls_left_ = is_late | others_gave_up() ? 0 : kPollsBetween;
    }
    return !has_given_up();
  }

  // For who has given up in this step: tells the others and the host, unless somebody has.
  FUSED_RNN_DEVICE void report(int step) const {
    if (others_gave_up()) return;
    *static_cast<volatile unsigned long long*>(watch_.report) = who_.word | static_cast<uint32_t>(step);
    store_relaxed(watch_.given_up, Pack<1>{1});
  }

 private:
  static constexpr int kPollsBetween = 16;

  FUSED_RNN_DEVICE bool others_gave_up() const {
    Pack<1> word;
    load_relaxed(word, watch_.given_up);
    return word.word[0] != 0;
  }

  const Watch& watch_;
  Report who_;
  int polls_left_ = kPollsBetween;  // until it looks at the clock and the abort word; <= 0: has given up
};

}  // namespace
}  // namespace fused_rnn::cuda
