// Timeouts of blocks that wait for each other. On a timeout a block reports to a word in host memory, which the next
// call on that GPU raises as an error, sets the launch's abort flag, and uses NaN for all missing data. So every output
// is either correct or NaN.
#pragma once
#include <cstdint>

namespace fused_rnn::cuda {

struct Watch {
  uint64_t nanoseconds;        // timeout of a wait
  unsigned long long* report;  // in mapped host memory
  uint32_t* abort_flag;        // of the call: nonzero once any block has timed out
};

// Which block timed out, and in which step: one nonzero word.
struct Report {
  uint64_t word;

  static constexpr int kRank = 32, kGroup = 40, kBlocks = 60;  // first bits of the fields; the step is at 0
  static constexpr uint64_t kIsBack = uint64_t{1} << 62, kIsThere = uint64_t{1} << 63;

  constexpr uint64_t step() const { return word & 0xffffffff; }
  constexpr uint64_t rank() const { return word >> kRank & 0xff; }
  constexpr uint64_t group() const { return word >> kGroup & 0xfffff; }
  constexpr uint64_t blocks() const { return word >> kBlocks & 3; }
  constexpr bool is_back() const { return word & kIsBack; }
};

// Throws if an earlier launch on this device has reported a timeout; does not synchronize.
void raise_report(int32_t device);
// For launches on this device. `abort_flag`: 4 bytes of device memory.
Watch make_watch(int32_t device, void* abort_flag);

// FUSED_RNN_CUDA_WAIT_S in nanoseconds, by default 10 seconds. Throws unless it is a positive number.
uint64_t wait_nanoseconds();

}  // namespace fused_rnn::cuda
