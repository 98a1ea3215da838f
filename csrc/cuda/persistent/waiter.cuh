// Polling with a timeout (watch.h). The polling loops are unrolled many times in a kernel, so a timeout is reported
// after them, once a step.
#pragma once
#include "cuda/device/device.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

// When a wait first read the clock, in nanoseconds.
struct FirstLook {
  uint64_t at = ~uint64_t{0};
};

class Waiter {
 public:
  // `group`: index among all groups of the pass.
  FUSED_RNN_DEVICE Waiter(const Watch& watch, Blocks blocks, bool back, int group, int rank)
      : watch_(watch),
        who_{Report::kIsThere | (back ? Report::kIsBack : 0) | uint64_t(blocks) << Report::kBlocks |
             uint64_t(group & 0xfffff) << Report::kGroup | uint64_t(rank) << Report::kRank} {}

  // Before the waits of a step.
  FUSED_RNN_DEVICE void begin_step() { polls_left_ = kPollsBetween; }

  // This thread or another has timed out: no further waits in this call.
  FUSED_RNN_DEVICE bool is_aborted() const { return polls_left_ <= 0; }
  FUSED_RNN_DEVICE void stop() { polls_left_ = 0; }

  // After a failed poll: whether to poll again.
  FUSED_RNN_DEVICE bool keep_waiting(FirstLook& first, unsigned nanoseconds = 0) {
    keep_polling(nanoseconds);
    if (--polls_left_ == 0) {
      const uint64_t now = global_nanoseconds();
      first.at = now < first.at ? now : first.at;
      const bool is_late = now - first.at > watch_.nanoseconds;
      polls_left_ = is_late | others_aborted() ? 0 : kPollsBetween;
    }
    return !is_aborted();
  }

  // Reports a timeout in this step to the other blocks and the host, unless that has been done.
  FUSED_RNN_DEVICE void report(int step) const {
    if (others_aborted()) return;
    *static_cast<volatile unsigned long long*>(watch_.report) = who_.word | static_cast<uint32_t>(step);
    store_relaxed(watch_.abort_flag, Pack<1>{1});
  }

 private:
  static constexpr int kPollsBetween = 16;

  FUSED_RNN_DEVICE bool others_aborted() const {
    Pack<1> word;
    load_relaxed(word, watch_.abort_flag);
    return word.word[0] != 0;
  }

  const Watch& watch_;
  Report who_;
  int polls_left_ = kPollsBetween;  // until the next check of clock and abort flag; <= 0: aborted
};

}  // namespace
}  // namespace fused_rnn::cuda
