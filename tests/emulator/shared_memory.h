// A block's dynamic shared memory. It begins full of NaN, so that what is read before it was written shows, and lies
// between two red zones: a write to them is found when the block ends, AddressSanitizer finds reads too.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace emulator {

class SharedMemory {
 public:
  static constexpr size_t kAlignment = 128, kRedZone = 1024;
  static constexpr unsigned char kPoison = 0xff;  // a NaN in every format, and in a red zone as well

  explicit SharedMemory(size_t bytes) : bytes_(bytes), memory_(new unsigned char[bytes + 2 * kRedZone + kAlignment]) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(memory_.get()) + kRedZone;
    begin_ = reinterpret_cast<unsigned char*>((first + kAlignment - 1) / kAlignment * kAlignment);
    std::memset(memory_.get(), kPoison, bytes + 2 * kRedZone + kAlignment);
    ASAN_POISON_MEMORY_REGION(begin_ - kRedZone, kRedZone);
    ASAN_POISON_MEMORY_REGION(begin_ + bytes_, kRedZone);
  }
  ~SharedMemory() { ASAN_UNPOISON_MEMORY_REGION(begin_ - kRedZone, bytes_ + 2 * kRedZone); }
  SharedMemory(const SharedMemory&) = delete;

  unsigned char* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }
  bool holds(const void* address, size_t size) const {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(begin_);
    return offset <= bytes_ && size <= bytes_ - offset;
  }

  void check() const {
    ASAN_UNPOISON_MEMORY_REGION(begin_ - kRedZone, bytes_ + 2 * kRedZone);
    for (size_t i = 0; i < kRedZone; ++i) {
      if (begin_[-1 - ptrdiff_t(i)] != kPoison) fail("shared memory was written ", i + 1, " bytes before its begin");
      if (begin_[bytes_ + i] != kPoison) fail("shared memory was written ", i, " bytes past its end");
    }
  }

 private:
  size_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* begin_;
};

}  // namespace emulator
