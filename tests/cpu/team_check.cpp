// Called by test_team.py: csrc/cpu/schedule/team.h under schedules of all kinds. Each function returns what is wrong,
// or null.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include <memory>
#include <random>
#include <thread>
#include <vector>

// Every access to shared memory, and every wait, lets the scheduler below switch.
#ifdef FUSED_RNN_FIBERS
static void switch_point();
#define __atomic_load_n(from, order) (switch_point(), __atomic_load_n(from, order))
#define __atomic_store_n(to, value, order) (switch_point(), __atomic_store_n(to, value, order))
#define __atomic_compare_exchange_n(to, expected, value, weak, order, order_else) \
  (switch_point(), __atomic_compare_exchange_n(to, expected, value, weak, order, order_else))
#define sched_yield() switch_point()
#endif
#include "cpu/schedule/team.h"

using fused_rnn::cpu::Team;

static char problem[256];
#define FAIL(...)                                                    \
  do {                                                               \
    if (!problem[0]) snprintf(problem, sizeof problem, __VA_ARGS__); \
  } while (0)

// ---- real threads ---------------------------------------------------------------------------------------------------

// Stretch s: share i writes the sum of all that stretch s - 1 wrote, times i + 1. Plain numbers: what was not ordered
// by the team is a race, which ThreadSanitizer reports.
extern "C" const char* check_threads(int64_t members, int64_t stretches, uint64_t seed, int64_t sleepy) {
  problem[0] = 0;
  std::vector<Team::Member> shared(members);
  const Team team(shared.data(), members);
  team.clear();
  std::vector<uint64_t> now[2] = {std::vector<uint64_t>(members, 1), std::vector<uint64_t>(members, 1)};
  std::vector<int64_t> times(members * stretches, 0);
  const auto walk = [&](int64_t member) {
    std::mt19937_64 randoms(seed * 64 + member);
    const auto perhaps_sleep = [&] {
      if (sleepy && randoms() % 16 == 0) usleep(randoms() % 300);
    };
    perhaps_sleep();
    team.join(member);
    for (int64_t s = 0; s < stretches; ++s) {
      team.together(member, s, [&](int64_t share) {
        perhaps_sleep();
        uint64_t sum = 0;
        for (const uint64_t x : now[s % 2]) sum += x;
        now[(s + 1) % 2][share] = sum * (share + 1) + s;
        ++times[s * members + share];
      });
    }
    team.leave(member);
  };
  std::vector<std::thread> threads;
  for (int64_t member = 0; member < members; ++member) threads.emplace_back(walk, member);
  for (std::thread& thread : threads) thread.join();

  std::vector<uint64_t> expected(members, 1), next(members);
  for (int64_t s = 0; s < stretches; ++s) {
    uint64_t sum = 0;
    for (const uint64_t x : expected) sum += x;
    for (int64_t i = 0; i < members; ++i) next[i] = sum * (i + 1) + s;
    expected = next;
  }
  if (now[stretches % 2] != expected) FAIL("a stretch did not see all of the one before it");
  for (const int64_t n : times)
    if (n != 1) FAIL("a share was done %ld times", long(n));
  return problem[0] ? problem : nullptr;
}

// ---- many members on one thread, in an order given by a seed --------------------------------------------------------

#ifdef FUSED_RNN_FIBERS

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int64_t asleep_until = 0;  // in switch points
  bool finished = false;
};

static std::mt19937_64 randoms;
static std::vector<Fiber> fibers;
static ucontext_t outside;
static int current;
static int64_t clock_now, sleepiness;
constexpr int64_t kTooLong = 20'000'000;

static void switch_to(int next) {
  const int last = current;
  current = next;
  if (last != next) swapcontext(&fibers[last].context, &fibers[next].context);
}

// A member that is awake; if none is, time goes on until one wakes up. -1: all have finished.
static int someone() {
  std::vector<int> awake;
  int first = -1;
  for (int i = 0; i < int(fibers.size()); ++i) {
    if (fibers[i].finished) continue;
    if (fibers[i].asleep_until <= clock_now) awake.push_back(i);
    if (first < 0 || fibers[i].asleep_until < fibers[first].asleep_until) first = i;
  }
  if (!awake.empty()) return awake[randoms() % awake.size()];
  if (first >= 0) clock_now = fibers[first].asleep_until;
  return first;
}

static void switch_point() {
  if (++clock_now > kTooLong) {
    FAIL("this does not end");
    setcontext(&outside);
  }
  if (sleepiness && randoms() % 200 == 0) fibers[current].asleep_until = clock_now + int64_t(randoms() % sleepiness);
  switch_to(someone());
}

static int64_t size_of_team, number_of_stretches;
static Team::Member* shared_members;
static std::vector<char> begun, ended;

static void run_member(int member) {
  const Team team(shared_members, size_of_team);
  team.join(member);
  for (int64_t s = 0; s < number_of_stretches; ++s) {
    const auto all_ended = [&](int64_t stretch) {
      for (int64_t i = 0; i < size_of_team; ++i)
        if (!ended[stretch * size_of_team + i]) return false;
      return true;
    };
    team.together(member, s, [&](int64_t share) {
      if (s > 0 && !all_ended(s - 1)) FAIL("stretch %ld began before the one before it ended", long(s));
      if (begun[s * size_of_team + share]++) FAIL("share %ld of stretch %ld was done twice", long(share), long(s));
      for (int64_t n = randoms() % 4; n > 0; --n) switch_point();
      ended[s * size_of_team + share] = 1;
    });
    if (!all_ended(s)) FAIL("stretch %ld was left before it ended", long(s));
  }
  team.leave(member);
  fibers[member].finished = true;
  const int next = someone();
  if (next < 0) setcontext(&outside);
  current = next;
  setcontext(&fibers[next].context);
}

// Members 0 .. coming - 1 of a team of `members` take part, at once or up to `late` switch points later, and sleep
// for up to `sleep` points. `points`: how many it took.
extern "C" const char* check_schedule(int64_t members, int64_t coming, int64_t stretches, uint64_t seed, int64_t late,
                                      int64_t sleep, int64_t* points) {
  problem[0] = 0;
  randoms.seed(seed);
  sleepiness = sleep;
  clock_now = 0;
  size_of_team = members;
  number_of_stretches = stretches;
  std::vector<Team::Member> shared(members);
  memset(static_cast<void*>(shared.data()), 0xff, sizeof(Team::Member) * members);
  shared_members = shared.data();
  Team(shared_members, members).clear();
  begun.assign(members * stretches, 0);
  ended.assign(members * stretches, 0);
  fibers = std::vector<Fiber>(coming);
  for (int64_t i = 0; i < coming; ++i) {
    Fiber& fiber = fibers[i];
    fiber.stack.reset(new char[64 * 1024]);
    fiber.asleep_until = late ? int64_t(randoms() % late) : 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = 64 * 1024;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&run_member), 1, int(i));
  }
  volatile bool done = false;
  getcontext(&outside);
  if (!done) {
    done = true;
    current = someone();
    setcontext(&fibers[current].context);
  }
  for (const char e : ended)
    if (!e) FAIL("a share was never done");
  *points = clock_now;
  return problem[0] ? problem : nullptr;
}
#endif
