// Runs the kernels of kernels.cuh with and without their faults: the emulator must pass the one and catch the other.
#include "kernels.cuh"

#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace fused_rnn {
namespace {

bool missing_block_barrier(bool fault) {
  std::vector<int> out(64, -1);
  launch({1, 64, nullptr, 64 * sizeof(int)}, mirror, out.data(), fault);
  for (int i = 0; i < 64; ++i)
    if (out[i] != 63 - i) return false;
  return true;
}
bool missing_warp_barrier(bool fault) {
  std::vector<int> out(32, -1);
  launch({1, 32, nullptr, 32 * sizeof(int)}, mirror_in_warp, out.data(), fault);
  for (int i = 0; i < 32; ++i)
    if (out[i] != 31 - i) return false;
  return true;
}
bool buffer_used_too_early(bool fault) {
  std::vector<int> out(96);
  launch({1, 96, nullptr, 96 * sizeof(int)}, shift, out.data(), 5, fault);
  for (int i = 0; i < 96; ++i)
    if (out[i] != (i + 5) % 96) return false;
  return true;
}
bool read_before_written(bool fault) {
  std::vector<float> out(32);
  launch({1, 32, nullptr, 32 * sizeof(float)}, sum_first, out.data(), 20u, fault);
  return out[0] == 20 && out[31] == 20;
}
bool shared_memory_overrun(bool fault) {
  launch({1, 64, nullptr, fault ? 63u : 64u}, fill, 64u);
  return true;
}
bool barrier_not_reached_by_all(bool fault) {
  launch({1, 64, nullptr}, some_wait, fault);
  return true;
}
bool barriers_of_two_branches(bool fault) {
  launch({1, 64, nullptr}, wait_apart, fault);
  return true;
}
bool shuffle_without_all_lanes(bool fault) {
  std::vector<int> out(32);
  launch({1, 32, nullptr}, shuffle_some, out.data(), fault);
  return out[4] == 5 && out[31] == 30;
}

bool missing_grid_barrier(bool fault) {
  constexpr int kBlocks = 6, kSteps = 4;
  std::vector<int> numbers(kBlocks * (kSteps + 1), -1);
  for (int i = 0; i < kBlocks; ++i) numbers[i] = i;
  uint32_t arrived = 0;
  Launch how = {kBlocks, 64, nullptr};
  how.cooperative = true;
  launch(how, rotate, numbers.data(), &arrived, kSteps, fault);
  for (int i = 0; i < kBlocks; ++i)
    if (numbers[kBlocks * kSteps + i] != (i + kSteps) % kBlocks) return false;
  return true;
}
// The grid barrier of a launch whose blocks come one after another.
bool grid_not_cooperative(bool fault) {
  std::vector<int> numbers(2 * 3);
  uint32_t arrived = 0;
  Launch how = {3, 32, nullptr};
  how.cooperative = !fault;
  launch(how, rotate, numbers.data(), &arrived, 1, false);
  return true;
}
bool data_that_never_comes(bool fault) {
  constexpr unsigned kBlocks = 5, kSteps = 6;
  std::vector<Pack<4>> slots(kBlocks * (kSteps + 1));
  std::memset(slots.data(), 0xff, slots.size() * sizeof slots[0]);
  Launch how = {kBlocks, 32, nullptr};
  how.cooperative = true;
  launch(how, pass_on, slots.data(), int{kSteps}, fault);
  for (unsigned i = 0; i < kBlocks; ++i)
    if (slots[kBlocks * kSteps + i].word[0] != (i + kSteps) % kBlocks) return false;
  return true;
}

bool run_tell_next(bool no_wait, bool leaves) {
  constexpr unsigned kSize = 4;
  std::vector<unsigned> out(2 * kSize, ~0u);
  Launch how = {2 * kSize, 32, nullptr, sizeof(Pack<2>)};
  how.cluster = kSize;
  launch(how, tell_next, out.data(), kSize, no_wait, leaves);
  for (unsigned i = 0; i < 2 * kSize; ++i)
    if (out[i] != (i + kSize - 1) % kSize) return false;
  return true;
}
bool missing_cluster_wait(bool fault) { return run_tell_next(fault, false); }
bool block_left_its_cluster(bool fault) { return run_tell_next(false, fault); }
bool run_exchange(ExchangeFault fault) {
  constexpr unsigned kSize = 8;
  constexpr int kSteps = 9;
  std::vector<unsigned> out(kSize, ~0u);
  Launch how = {kSize, 64, nullptr, 2 * sizeof(uint64_t) + 2 * kSize * sizeof(Pack<2>)};
  how.cluster = kSize;
  launch(how, exchange, out.data(), kSize, kSteps, fault);
  for (unsigned i = 0; i < kSize; ++i)
    if (out[i] != (i + kSteps) % kSize) return false;
  return true;
}
bool missing_mbarrier_wait(bool fault) { return run_exchange(fault ? kNoWait : kNone); }
bool mbarrier_not_armed_again(bool fault) { return run_exchange(fault ? kNotArmedAgain : kNone); }
bool mbarrier_not_initialized(bool fault) { return run_exchange(fault ? kNotInitialized : kNone); }
bool single_slot(bool fault) { return run_exchange(fault ? kOneSlot : kNone); }

bool polls_for_ever(bool fault) {
  const uint32_t flag = fault ? 0 : 1;
  launch({2, 64, nullptr}, poll_for, &flag);
  return true;
}
bool too_many_threads(bool fault) {
  launch({1, fault ? 1025u : 1024u, nullptr}, nothing);
  return true;
}
bool too_much_shared_memory(bool fault) {
  launch({1, 32, nullptr, size_t{227} * 1024 + fault}, nothing);
  return true;
}

const std::map<std::string, bool (*)(bool fault)> kCases = {
#define CASE(name) {#name, name}
    CASE(missing_block_barrier),
    CASE(missing_warp_barrier),
    CASE(buffer_used_too_early),
    CASE(read_before_written),
    CASE(shared_memory_overrun),
    CASE(barrier_not_reached_by_all),
    CASE(barriers_of_two_branches),
    CASE(shuffle_without_all_lanes),
    CASE(missing_grid_barrier),
    CASE(grid_not_cooperative),
    CASE(data_that_never_comes),
    CASE(missing_cluster_wait),
    CASE(block_left_its_cluster),
    CASE(missing_mbarrier_wait),
    CASE(mbarrier_not_armed_again),
    CASE(mbarrier_not_initialized),
    CASE(single_slot),
    CASE(polls_for_ever),
    CASE(too_many_threads),
    CASE(too_much_shared_memory),
#undef CASE
};

thread_local std::string message;

}  // namespace
}  // namespace fused_rnn

using namespace fused_rnn;

// "": right; "wrong result", or what the emulator says.
extern "C" const char* run_case(const char* name, bool fault, unsigned seed) {
  emulator::schedule = {seed};
  try {
    message = kCases.at(name)(fault) ? "" : "wrong result";
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

extern "C" const char* case_names() {
  message.clear();
  for (const auto& [name, run] : kCases) message += name + " ";
  return message.c_str();
}

extern "C" void multiply(int kind, const uint32_t* a, const uint32_t* b, float* d) {
  emulator::schedule = {0};
  if (kind == 0) launch({1, 32, nullptr}, multiply_matrices<BFloat16Product>, a, b, d);
  if (kind == 1) launch({1, 32, nullptr}, multiply_matrices<HalfProduct>, a, b, d);
  if (kind == 2) launch({1, 32, nullptr}, multiply_matrices<Tf32Product>, a, b, d);
  if (kind == 3) launch({1, 32, nullptr}, multiply_matrices<RoundedProduct>, a, b, d);
}

// For the sanitizers, which want a program: runs the named cases without their faults, or with them (first argument).
int main(int count, char** arguments) {
  const bool fault = std::string(arguments[1]) == "faults";
  for (int i = 2; i < count; ++i) {
    const std::string found = run_case(arguments[i], fault, 0);
    if (!found.empty()) std::fprintf(stderr, "%s: %s\n", arguments[i], found.c_str());
    if (!found.empty()) return 1;
  }
}
