// Threads that share the hidden units of each step, when a batch has too few rows for all threads, with a barrier after
// every step.
#pragma once
#ifndef _WIN32
#include <sched.h>
#endif
#include <stdint.h>

#include "cpu/schedule/tuning.h"

#ifdef _WIN32
extern "C" __declspec(dllimport) int __stdcall SwitchToThread(void);  // windows.h would bring macros along
#endif

namespace fused_rnn::cpu {
namespace {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline void yield_thread() {
#ifdef _WIN32
  SwitchToThread();
#else
  sched_yield();
#endif
}

// Every member calls `together` once for each stretch of work, which is divided into one share per member. A member
// takes its own share, whose weights are in its core's cache, then waits for the others. A waiting member takes over a
// share that has not been begun: at once if its owner has not joined, else after some time (the owner may have been
// descheduled). So one thread alone can complete all work: no deadlock if others never start.
class Team {
 public:
  // Two cache lines, as the adjacent one is prefetched too (scratch memory is aligned to 64 bytes, not to 128).
  struct alignas(64) Member {
    int64_t joined, begun, done;  // 0 or 1; numbers of stretches whose share was begun, and finished
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

  // Runs share(i) for every member i; a barrier. `stretch` counts the calls, from 0.
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
          yield_thread();
      }
    }
    while (!is_done(member, stretch)) yield_thread();  // taken by another thread
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
