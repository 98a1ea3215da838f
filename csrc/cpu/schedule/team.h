// Threads that go through time together. When a batch has too few rows for all threads, each thread computes some of
// the hidden units of every step, and no step may begin before all units of the step before it are there.
#pragma once
#include <sched.h>
#include <stdint.h>

#include "cpu/schedule/tuning.h"

namespace fused_rnn::cpu {
namespace {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Every member calls `together` once for each stretch of work, which is divided into as many shares as there are
// members. A member takes its own share, whose weights its core's cache holds, and then waits for the others. It never
// waits for a thread that may not come: a share that nobody has begun is taken by whoever waits for it, at once if its
// owner has not joined, else after some time (the owner may have lost its core). So one thread alone gets through all
// the work, in any order of events.
class Team {
 public:
  // Every second cache line, as neighbours are fetched together. Scratch memory is aligned to 64 bytes, not to 128.
  struct alignas(64) Member {
    int64_t joined, begun, done;  // 0 or 1; the number of stretches whose share was begun, and was finished
    int64_t unused[13];
  };
  static_assert(sizeof(Member) == 128);

  Team(Member* members, int64_t size) : members_(members), size_(size) {}

  int64_t size() const { return size_; }
  void clear() const {
    for (int64_t i = 0; i < size_; ++i) members_[i] = {};
  }
  void join(int64_t member) const { set_joined(member, 1); }
  void leave(int64_t member) const { set_joined(member, 0); }

  // share(i) for every member i; returns when all are done. `stretch` counts the calls, from 0.
  template <class Share>
  void together(int64_t member, int64_t stretch, Share share) const {
    if (size_ == 1) return share(int64_t(0));
    take(member, stretch, share);
    for (int64_t i = 0; i < size_; ++i) {
      if (i == member) continue;
      for (int64_t tries = 0; !is_done(i, stretch); ++tries) {
        const bool joined = __atomic_load_n(&members_[i].joined, __ATOMIC_ACQUIRE);
        if (joined && tries < kTeamPatience)
          pause_briefly();
        else if (!take(i, stretch, share))
          sched_yield();
      }
    }
    while (!is_done(member, stretch)) sched_yield();  // another thread had taken it
  }

 private:
  void set_joined(int64_t member, int64_t joined) const {
    if (size_ > 1) __atomic_store_n(&members_[member].joined, joined, __ATOMIC_RELEASE);
  }

  bool is_done(int64_t i, int64_t stretch) const {
    return __atomic_load_n(&members_[i].done, __ATOMIC_ACQUIRE) > stretch;
  }

  template <class Share>
  bool take(int64_t i, int64_t stretch, Share share) const {
    int64_t expected = stretch;
    if (!__atomic_compare_exchange_n(&members_[i].begun, &expected, stretch + 1, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED))
      return false;
    share(i);
    __atomic_store_n(&members_[i].done, stretch + 1, __ATOMIC_RELEASE);
    return true;
  }

  Member* members_;
  int64_t size_;
};

}  // namespace
}  // namespace fused_rnn::cpu
