// Waits that end: of blocks for each other. A block that has waited in vain for some seconds gives up: it writes who
// waited for what to a word of the host's memory, which the next call on that GPU raises, tells the rest of its launch,
// and takes for NaN all that it did not get. So are then all numbers that come of it: an output is right, or it is NaN.
#pragma once
#include <cstdint>

namespace fused_rnn::cuda {

// What the kernels of a launch know of it.
struct Watch {
  uint64_t nanoseconds;        // that a wait may take
  unsigned long long* report;  // in the host's memory
  uint32_t* given_up;          // of this call: not 0 once anyone has
};

// Who waited for what, in a word that is never zero.
struct Report {
  uint64_t word;

  static constexpr int kRank = 32, kGroup = 40, kBlocks = 60;  // first bits of its fields; the step is at 0
  static constexpr uint64_t kIsBack = uint64_t{1} << 62, kIsThere = uint64_t{1} << 63;

  constexpr uint64_t step() const { return word & 0xffffffff; }
  constexpr uint64_t rank() const { return word >> kRank & 0xff; }
  constexpr uint64_t group() const { return word >> kGroup & 0xfffff; }
  constexpr uint64_t blocks() const { return word >> kBlocks & 3; }
  constexpr bool is_back() const { return word & kIsBack; }
};

// Raises what an earlier launch on this device has reported, without waiting for any.
void raise_report(int32_t device);
// For launches on this device, whose memory `given_up` has 4 bytes of.
Watch make_watch(int32_t device, void* given_up);

// FUSED_RNN_CUDA_WAIT_S, in nanoseconds: 10 seconds unless it is set. Throws for what is no positive number.
uint64_t wait_nanoseconds();

}  // namespace fused_rnn::cuda
