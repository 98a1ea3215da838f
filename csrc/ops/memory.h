// Where an operator's results and scratch memory come from.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "ops/shape.h"

namespace fused_rnn {

using torch::stable::Tensor;

// An uninitialized tensor on the device of `like` and, unless told otherwise, of its dtype.
Tensor new_tensor(const Tensor& like, const Shape& shape,
                  std::optional<torch::headeronly::ScalarType> dtype = std::nullopt);

// The same, for what the backward pass reads again and no user keeps: on the CPU, large ones lie in memory that earlier
// ones lay in, of which a process keeps at most 256 MiB.
Tensor recycled_tensor(const Tensor& like, const Shape& shape);

// The scratch memory of one operator call. On the CPU each thread keeps a buffer from call to call, since a short call
// spends longer in the allocator than in arithmetic; what does not fit into kKept bytes is recycled as above.
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
  std::vector<Tensor> held_;  // elsewhere than on the CPU
};

// For tests: from now on all of this memory comes filled with bytes of ones, a NaN in every dtype.
void fill_memory(bool fill);

}  // namespace fused_rnn
