// Global memory that kernels may touch: everything that was allocated for them, each with a fence on either side. An
// address outside of all of it is an error; that makes an access one number past an array one, too.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace ptx {

class Allocations {
 public:
  struct Range {
    uint64_t begin = 0, end = 0;
    uint64_t generation = ~uint64_t{0};  // of the list it was found in
  };

  void add(const void* begin, size_t bytes);
  void remove(const void* begin);
  // What lies around the address.
  std::optional<Range> find(uint64_t address) const;
  // Where the nearest allocation lies, for an error's text.
  std::string describe(uint64_t address) const;
  // Changes with every removal: a range found before it may be gone.
  uint64_t generation() const { return generation_.load(std::memory_order_relaxed); }

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, uint64_t> all_;  // begin, end
  std::atomic<uint64_t> generation_ = 0;
};

Allocations& allocations();

// Memory between fences, known to allocations(); filled with bytes of ones, a NaN in every format, where that is asked
// for.
void* allocate_fenced(size_t bytes);
void free_fenced(void* memory);
void fill_allocations(bool fill);

}  // namespace ptx
