// Allocation of an operator's results and scratch memory.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "ops/shape.h"

namespace fused_rnn {

using torch::stable::Tensor;

// An uninitialized tensor on the device of `like` and, unless given, of its dtype.
Tensor new_tensor(const Tensor& like, const Shape& shape,
                  std::optional<torch::headeronly::ScalarType> dtype = std::nullopt);

// The same, for tensors saved for the backward pass and for weight gradients: on the CPU, large ones come from a pool (at
// most 256 MiB). Their storage cannot be resized.
Tensor recycled_tensor(const Tensor& like, const Shape& shape);

// The scratch memory of one operator call. On the CPU each thread keeps a buffer of up to kKept bytes between calls,
// since a short call would spend more time in the allocator than in arithmetic; larger blocks come from the pool.
class CallScratch {
 public:
  static constexpr int64_t kKept = int64_t{4} << 20;

  explicit CallScratch(const Tensor& like);
  ~CallScratch();
  CallScratch(const CallScratch&) = delete;

  void* take(int64_t bytes);

 private:
  void* take_kept(int64_t bytes);

  const Tensor& like_;
  bool may_keep_;
  int64_t used_ = 0;  // of the thread's buffer
  std::vector<void*> pooled_;
  std::vector<Tensor> held_;  // neither kept nor pooled
};

// The scratch memory of one call after another on the CPU, kept in between: only calls that need more than any before
// allocate.
class KeptScratch {
 public:
  // Before each call.
  void begin() { next_ = 0; }
  void* take(int64_t bytes);

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;
  };

  std::vector<Block> blocks_;  // of a call's first request, second one, ...
  size_t next_ = 0;
};

// For tests: whether all of this memory is filled with one bits, a NaN in every dtype, when allocated.
void fill_memory(bool fill);

}  // namespace fused_rnn
