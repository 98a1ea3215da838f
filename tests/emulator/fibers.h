// Emulated threads as fibers of one OS thread: they take turns, in an order that the schedule says, and only where they
// wait or poll. Fast, repeatable, and adversarial; what it cannot show is a race that needs two real threads
// (threads.h).
#pragma once
#include <algorithm>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "context.h"
#include "error.h"
#include "schedule.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

// AddressSanitizer must be told of every change of stack.
#if defined(__SANITIZE_ADDRESS__)
struct StackChange {
  void* fake = nullptr;
  void begin(const void* to, size_t bytes) { __sanitizer_start_switch_fiber(&fake, to, bytes); }
  void end() { __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); }
};
#else
struct StackChange {
  void begin(const void*, size_t) {}
  void end() {}
};
#endif

struct Fiber {
  static constexpr size_t kStackBytes = size_t{64} << 10;

  Thread* thread;
  int64_t block, warp;  // the units that may run ahead
  char* stack;
  void* position;
  StackChange change = {};
  bool ended = false;
  int64_t polled_at = -1;                // the progress at its last fruitless poll
  std::string doing = "have not begun";  // and where: for messages
  Place place = {};
};

// Runs the threads of one launch, or of the blocks of it that must be there together.
class Scheduler {
 public:
  static constexpr int kIdleRounds = 200;  // turns of all pollers without anything changing, until that is an error

  Scheduler(std::function<void()> body, Schedule schedule)
      : body_(std::move(body)), schedule_(schedule), random_(schedule.seed) {}

  void add(Thread* thread, int64_t block, int64_t warp) { fibers_.push_back({thread, block, warp, nullptr, nullptr}); }

  // Returns when all have ended. After an error the others are left where they are: nothing on their stacks needs care.
  void run() {
    Scheduler* const outer = std::exchange(current_, this);
    Thread* const outer_thread = running;
    for (Fiber& fiber : fibers_) {
      fiber.stack = take_stack();
      fiber.position = new_stack_position(fiber.stack, Fiber::kStackBytes, &enter);
      ready_.push_back(&fiber);
    }
    try {
      for (size_t left = fibers_.size(); left > 0;) left -= round();
    } catch (...) {
      error_ = std::current_exception();
    }
    for (Fiber& fiber : fibers_) stacks_.emplace_back(fiber.stack);
    current_ = outer;
    running = outer_thread;
    if (error_) std::rethrow_exception(error_);
  }

  static Scheduler& current() { return *current_; }

  // ---- called by a running thread ----

  // Something happened that another thread may be waiting for.
  void progress() { ++progress_; }
  // Lets the others run. The caller polls: it has looked, and not found what it waits for.
  void poll(const Place& place) {
    note("poll", place);
    fiber_->polled_at = progress_;
    ready_.push_back(fiber_);
    leave();
  }
  void sleep(std::vector<Fiber*>& list, const char* barrier, const Place& place) {
    note(std::string("wait for ") + barrier, place);
    list.push_back(fiber_);
    leave();
  }
  void wake(std::vector<Fiber*>& list) {
    for (Fiber* fiber : list) ready_.push_back(fiber);
    list.clear();
    progress();
  }
  // Has its turn again, after the others.
  void yield() {
    ready_.push_back(fiber_);
    leave();
  }
  // Something asynchronous: it happens now or later.
  void defer(std::function<void()> event) {
    if (schedule_.delays_stores())
      deferred_.push_back(std::move(event));
    else
      happen(event);
  }

 private:
  void note(std::string doing, const Place& place) {
    fiber_->doing = std::move(doing);
    fiber_->place = place;
  }

  void happen(const std::function<void()>& event) {
    event();
    progress();
  }

  // Lets a part of the threads that can run do so, up to where they next wait. Returns how many have ended.
  size_t round() {
    let_deferred_happen();
    if (ready_.empty()) fail("deadlock: ", describe());
    std::vector<Fiber*> all;
    all.swap(ready_);
    std::vector<Fiber*> turn = choose(all);
    size_t ended = 0;
    for (Fiber* fiber : turn) {
      enter(fiber);
      if (error_) std::rethrow_exception(error_);
      ended += fiber->ended;
    }
    return ended;
  }

  // Who has a turn; the others stay ready.
  std::vector<Fiber*> choose(std::vector<Fiber*>& all) {
    if (schedule_.order() == Order::kReverse) std::reverse(all.begin(), all.end());
    if (schedule_.order() > Order::kReverse) std::shuffle(all.begin(), all.end(), random_);
    const auto may_find_something = [&](Fiber* f) { return f->polled_at != progress_; };
    auto end = std::stable_partition(all.begin(), all.end(), may_find_something);
    if (end == all.begin()) {  // all poll, and nothing that the emulator knows of has changed
      if (++idle_rounds_ > kIdleRounds) fail("nothing happens any more: ", describe());
      end = all.end();
    } else {
      idle_rounds_ = 0;
      end = keep_favourite(all, end);
    }
    ready_.insert(ready_.end(), end, all.end());
    all.erase(end, all.end());
    return all;
  }

  // One block, or one warp, runs as far ahead of the others as it can; then another does.
  std::vector<Fiber*>::iterator keep_favourite(std::vector<Fiber*>& all, std::vector<Fiber*>::iterator end) {
    if (schedule_.order() != Order::kBlockAhead && schedule_.order() != Order::kWarpAhead) return end;
    const auto unit = [&](Fiber* f) { return schedule_.order() == Order::kBlockAhead ? f->block : f->warp; };
    if (std::none_of(all.begin(), end, [&](Fiber* f) { return unit(f) == favourite_; })) favourite_ = unit(all.front());
    return std::stable_partition(all.begin(), end, [&](Fiber* f) { return unit(f) == favourite_; });
  }

  void let_deferred_happen() {
    std::vector<std::function<void()>> events;
    events.swap(deferred_);
    const bool all = ready_.empty() || idle_rounds_ > 0;
    for (auto& event : events) {
      if (all || random_() % 4 == 0)
        happen(event);
      else
        deferred_.push_back(std::move(event));
    }
  }

  std::string describe() const {
    std::map<std::string, int> counts;
    for (const Fiber& fiber : fibers_) {
      std::ostringstream what;
      what << (fiber.ended ? "have ended" : fiber.doing);
      if (!fiber.ended && fiber.place.file) what << " at " << fiber.place;
      ++counts[what.str()];
    }
    std::ostringstream text;
    const char* separator = "";
    for (const auto& [what, count] : counts) {
      text << separator << count << " threads " << what;
      separator = ", ";
    }
    return text.str();
  }

  // ---- stacks ----

  char* take_stack() {
    if (stacks_.empty()) return new char[Fiber::kStackBytes];
    char* stack = stacks_.back().release();
    stacks_.pop_back();
    return stack;
  }

  void enter(Fiber* fiber) {
    fiber_ = fiber;
    running = fiber->thread;
    own_change_.begin(fiber->stack, Fiber::kStackBytes);
    emulator_switch_stack(&position_, fiber->position);
    own_change_.end();
  }
  void leave() {
    Fiber* const fiber = fiber_;
    fiber->change.begin(own_stack_, own_stack_bytes_);
    emulator_switch_stack(&fiber->position, position_);
    fiber->change.end();
  }
  static void enter() {
    Scheduler& scheduler = current();
    scheduler.note_own_stack();
    try {
      scheduler.body_();
    } catch (...) {
      scheduler.error_ = std::current_exception();
    }
    scheduler.fiber_->ended = true;
    scheduler.progress();
    scheduler.leave();
  }
  // AddressSanitizer says where the scheduler's own stack lies when the first fiber is entered.
  void note_own_stack() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &own_stack_, &own_stack_bytes_);
#endif
  }

  inline static thread_local Scheduler* current_ = nullptr;
  inline static thread_local std::vector<std::unique_ptr<char[]>> stacks_;  // kept for the next launches

  std::function<void()> body_;
  Schedule schedule_;
  std::mt19937 random_;
  std::vector<Fiber> fibers_;
  std::vector<Fiber*> ready_;
  std::vector<std::function<void()>> deferred_;
  std::exception_ptr error_;
  int64_t progress_ = 0, favourite_ = -1;
  int idle_rounds_ = 0;
  Fiber* fiber_ = nullptr;
  void* position_ = nullptr;
  StackChange own_change_ = {};
  const void* own_stack_ = nullptr;
  size_t own_stack_bytes_ = 0;
};

// For a fixed number of threads, any number of times.
class Barrier {
 public:
  Barrier(int64_t threads, const char* name) : threads_(threads), name_(name) {}
  Barrier(const Barrier&) = delete;

  // Returns the phase to wait for.
  unsigned arrive(const Place& place) {
    check_place(place);
    const unsigned phase = phase_;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++phase_;
      Scheduler::current().wake(waiting_);
    }
    return phase;
  }
  void wait(unsigned phase, const Place& place) {
    if (phase_ == phase)
      Scheduler::current().sleep(waiting_, name_, place);
    else
      Scheduler::current().yield();  // the last to arrive must not always be the first to go on
  }

 private:
  void check_place(const Place& place) {
    if (arrived_ == 0) place_ = place;
    if (!(place == place_)) fail("divergent: threads meet in ", name_, " from ", place_, " and from ", place);
  }

  const int64_t threads_;
  const char* const name_;
  int64_t arrived_ = 0;
  unsigned phase_ = 0;
  Place place_;
  std::vector<Fiber*> waiting_;
};

inline void poll(const Place& place) { Scheduler::current().poll(place); }
inline void progress() { Scheduler::current().progress(); }
template <class F>
void defer(F event) {
  Scheduler::current().defer(event);
}

}  // namespace emulator
