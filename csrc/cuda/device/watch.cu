#include "cuda/device/watch.h"

#include <atomic>
#include <cstdlib>
#include <mutex>

#include "core/engine_names.h"
#include "cuda/device/launch.h"

namespace fused_rnn::cuda {
namespace {

constexpr int kMostDevices = 128;

using Word = unsigned long long;
std::atomic<Word*> words[kMostDevices] = {};  // host addresses; never freed, as captured graphs may use them

std::atomic<Word*>& word_of(int32_t device) {
  FUSED_RNN_CHECK(0 <= device && device < kMostDevices, "fused_rnn: no device ", device);
  return words[device];
}

// On first use. Relaxed capture mode permits the allocation while this thread or another one captures a stream.
Word* allocate_word(int32_t device) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  std::atomic<Word*>& word = word_of(device);
  if (Word* const there = word) return there;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  void* memory = nullptr;
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "setting the stream capture mode");
  const cudaError_t error = cudaHostAlloc(&memory, sizeof(Word), cudaHostAllocMapped);
  check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), "setting the stream capture mode");
  check_cuda(error, "allocating host memory");
  *static_cast<Word*>(memory) = 0;
  return word = static_cast<Word*>(memory);
}

}  // namespace

void raise_report(int32_t device) {
  Word* const word = word_of(device);
  if (!word || !*const_cast<volatile Word*>(word)) return;
  const Report report = {__atomic_exchange_n(word, 0, __ATOMIC_RELAXED)};
  if (!report.word) return;  // another thread raises it
  fail("fused_rnn: an earlier call on CUDA device ", device,
       ", on some stream of this process, has timed out; results that it could not compute are NaN: block ",
       report.rank(), " of group ", report.group(), " of the persistent kernel (",
       kEngines[kFirstOfBlocks + report.blocks()], report.is_back() ? ", backward" : ", forward",
       ") waited for data of step ", report.step(), " for longer than FUSED_RNN_CUDA_WAIT_S");
}

Watch make_watch(int32_t device, void* abort_flag) {
  void* on_device = nullptr;
  check_cuda(cudaHostGetDevicePointer(&on_device, allocate_word(device), 0), "mapping host memory");
  return {wait_nanoseconds(), static_cast<Word*>(on_device), static_cast<uint32_t*>(abort_flag)};
}

uint64_t wait_nanoseconds() {
  constexpr double kSeconds = 10, kMost = 1e9;
  const char* const variable = std::getenv("FUSED_RNN_CUDA_WAIT_S");
  if (!variable || !*variable) return static_cast<uint64_t>(kSeconds * 1e9);
  char* end = nullptr;
  const double seconds = std::strtod(variable, &end);
  FUSED_RNN_CHECK(*end == '\0' && seconds > 0 && seconds <= kMost,
                  "fused_rnn: FUSED_RNN_CUDA_WAIT_S must be a number of seconds above 0, got '", variable, "'");
  return static_cast<uint64_t>(seconds * 1e9);
}

}  // namespace fused_rnn::cuda
