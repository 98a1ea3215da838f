// Emulated threads as OS threads: for ThreadSanitizer, which sees whether two accesses of memory are ordered by what a
// kernel does to order them. Every barrier therefore has a lock of its own: a common one would order everything.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <semaphore>
#include <thread>
#include <vector>

#include "error.h"
#include "schedule.h"

namespace emulator {

// OS threads that are kept from launch to launch: ThreadSanitizer takes long to begin one.
class Workers {
 public:
  ~Workers() {
    for (auto& worker : workers_) {
      worker->job = nullptr;
      worker->begin.release();
      worker->thread.join();
    }
  }

  // All jobs at the same time; returns when all are done.
  void run(const std::vector<std::function<void()>>& jobs) {
    while (workers_.size() < jobs.size()) workers_.push_back(std::make_unique<Worker>());
    for (size_t i = 0; i < jobs.size(); ++i) {
      workers_[i]->job = jobs[i];
      workers_[i]->begin.release();
    }
    for (size_t i = 0; i < jobs.size(); ++i) workers_[i]->done.acquire();
  }

 private:
  struct Worker {
    std::function<void()> job;
    std::binary_semaphore begin{0}, done{0};
    std::thread thread{[this] {
      for (begin.acquire(); job; begin.acquire()) {
        job();
        done.release();
      }
    }};
  };

  std::vector<std::unique_ptr<Worker>> workers_;
};

class Scheduler {
 public:
  static constexpr std::chrono::seconds kPatience{60};  // a launch of a test is done within a few

  Scheduler(std::function<void()> body, Schedule) : body_(std::move(body)) {}

  void add(Thread* thread, int64_t, int64_t) { threads_.push_back(thread); }

  void run() {
    current_ = this;
    deadline_ = std::chrono::steady_clock::now() + kPatience;
    static Workers workers;
    std::vector<std::function<void()>> jobs;
    for (Thread* thread : threads_)
      jobs.push_back([this, thread] {
        running = thread;
        try {
          body_();
        } catch (...) {
          give_up(std::current_exception());
        }
      });
    workers.run(jobs);
    if (error_) std::rethrow_exception(error_);
  }

  static Scheduler& current() { return *current_; }

  // Ends this thread when another has failed, or when it has waited for too long.
  void check_patience(const char* doing, const Place& place) {
    if (failed_.load(std::memory_order_relaxed)) fail("another thread failed");
    if (std::chrono::steady_clock::now() > deadline_) fail("nothing happens any more: a thread ", doing, " at ", place);
  }

 private:
  void give_up(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
    failed_ = true;
  }

  inline static Scheduler* current_ = nullptr;

  std::function<void()> body_;
  std::vector<Thread*> threads_;
  std::chrono::steady_clock::time_point deadline_;
  std::mutex mutex_;
  std::exception_ptr error_;
  std::atomic<bool> failed_ = false;
};

// For a fixed number of threads, any number of times.
class Barrier {
 public:
  Barrier(int64_t threads, const char* name) : threads_(threads), name_(name) {}
  Barrier(const Barrier&) = delete;

  // Returns the phase to wait for.
  unsigned arrive(const Place& place) {
    const std::lock_guard lock(mutex_);
    if (arrived_ == 0) place_ = place;
    if (!(place == place_)) fail("divergent: threads meet in ", name_, " from ", place_, " and from ", place);
    const unsigned phase = phase_;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++phase_;
      all_here_.notify_all();
    }
    return phase;
  }
  void wait(unsigned phase, const Place& place) {
    std::unique_lock lock(mutex_);
    while (phase_ == phase) {
      all_here_.wait_for(lock, std::chrono::milliseconds(100));
      if (phase_ == phase) Scheduler::current().check_patience(name_, place);
    }
  }

 private:
  const int64_t threads_;
  const char* const name_;
  std::mutex mutex_;
  std::condition_variable all_here_;
  int64_t arrived_ = 0;
  unsigned phase_ = 0;
  Place place_;
};

inline void poll(const Place& place) {
  Scheduler::current().check_patience("polls", place);
  std::this_thread::yield();
}
inline void progress() {}
template <class F>
void defer(F event) {
  event();
}

}  // namespace emulator
