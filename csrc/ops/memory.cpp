#include "ops/memory.h"

#include <torch/csrc/stable/ops.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define FUSED_RNN_HAS_FORK 1
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>

#include "core/fail.h"

namespace fused_rnn {
namespace {

constexpr int64_t kAlignment = 64;

std::atomic<bool> filled = false;

void* fill_if_asked(void* memory, int64_t bytes) {
  if (filled.load(std::memory_order_relaxed) && bytes > 0) std::memset(memory, 0xff, bytes);
  return memory;
}

constexpr int64_t kHugePage = int64_t{2} << 20;

[[noreturn]] void fail_to_allocate(int64_t bytes) {
  fail("fused_rnn: out of memory: could not allocate ", bytes, " bytes");
}

void* allocate_aligned(int64_t bytes, int64_t alignment) {
  void* memory = ::operator new(bytes, std::align_val_t(alignment), std::nothrow);
  if (memory == nullptr) fail_to_allocate(bytes);
  return memory;
}

struct FreeHuge {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kHugePage}); }
};
struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
};

// Reuses large blocks. Fresh ones would cost more than a tenth of a training step, as the operating system zeroes each
// page at its first touch.
class Pool {
 public:
  static constexpr int64_t kLeast = int64_t{1} << 20;  // the allocator reuses smaller ones itself

  void* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block)
      if (block->bytes >= bytes && block->bytes <= 2 * bytes && (best == free_.end() || block->bytes < best->bytes))
        best = block;
    Block block;
    if (best != free_.end()) {
      block = std::move(*best);
      free_.erase(best);
      kept_ -= block.bytes;
    } else {
      block = allocate(bytes);
    }
    void* memory = block.memory.get();
    used_.emplace(memory, std::move(block));
    return memory;
  }

  // A fork that came while another thread held the lock would leave the child without anyone to release it.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  void give_back(void* memory) {
    const std::lock_guard lock(mutex_);
    Block block = std::move(used_.extract(memory).mapped());
    if (block.bytes > kMostKept) return;
    kept_ += block.bytes;
    free_.push_back(std::move(block));
    while (kept_ > kMostKept) {
      kept_ -= free_.front().bytes;
      free_.erase(free_.begin());  // the oldest
    }
  }

 private:
  static constexpr int64_t kMostKept = int64_t{256} << 20;

  struct Block {
    std::unique_ptr<void, FreeHuge> memory;
    int64_t bytes = 0;
  };

  static Block allocate(int64_t bytes) {
    const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    Block block{std::unique_ptr<void, FreeHuge>(allocate_aligned(rounded, kHugePage)), rounded};
#ifdef __linux__
    madvise(block.memory.get(), rounded, MADV_HUGEPAGE);  // a hint: may fail
#endif
    return block;
  }

  std::mutex mutex_;
  std::vector<Block> free_;
  std::unordered_map<void*, Block> used_;
  int64_t kept_ = 0;
};

// Never destroyed: tensors may outlive static objects.
Pool& pool() {
  static Pool& only = *new Pool;
#ifdef FUSED_RNN_HAS_FORK
  static const int registered = pthread_atfork([] { only.lock(); }, [] { only.unlock(); }, [] { only.unlock(); });
  static_cast<void>(registered);
#endif
  return only;
}

struct Buffer {
  std::unique_ptr<void, Free> memory;
  int64_t bytes = 0;
  bool taken = false;  // by a call on this thread; calls may nest
};

Buffer& buffer_of_thread() {
  static thread_local Buffer buffer;
  return buffer;
}

int64_t rounded_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void fill_memory(bool fill) { filled = fill; }

// Not torch::stable::new_empty, whose dispatch takes half a microsecond.
Tensor new_tensor(const Tensor& like, const Shape& shape, std::optional<torch::headeronly::ScalarType> dtype) {
  int32_t dtype_code, device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype_code));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  if (dtype) dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  int64_t strides[Shape::kMaxDims], numel = 1;
  for (int64_t i = shape.size(); i-- > 0;) {
    const bool last = i + 1 == shape.size();
    strides[i] = last ? 1 : strides[i + 1] * std::max<int64_t>(shape[i + 1], 1);  // never zero, as in torch
    numel *= shape[i];
  }
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(shape.size(), shape.begin(), strides, dtype_code, device_type, device_index, &handle) !=
      AOTI_TORCH_SUCCESS)
    fail_to_allocate(numel * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype_code)));
  Tensor tensor(handle);
  if (device_type == aoti_torch_device_type_cpu())
    fill_if_asked(tensor.data_ptr(), numel * static_cast<int64_t>(tensor.element_size()));
  return tensor;
}

Tensor recycled_tensor(const Tensor& like, const Shape& shape) {
  int64_t strides[Shape::kMaxDims], bytes = static_cast<int64_t>(like.element_size());
  for (int64_t i = shape.size(); i-- > 0;) {
    strides[i] = bytes / static_cast<int64_t>(like.element_size());
    bytes *= shape[i];
  }
  if (!like.is_cpu() || bytes < Pool::kLeast) return new_tensor(like, shape);
  void* memory = fill_if_asked(pool().take(bytes), bytes);
  const auto dims = static_cast<size_t>(shape.size());
  return torch::stable::from_blob(memory, {shape.begin(), dims}, {strides, dims}, like.device(), like.scalar_type(),
                                  [](void* data) { pool().give_back(data); });
}

CallScratch::CallScratch(const Tensor& like) : like_(like), may_keep_(like.is_cpu() && !buffer_of_thread().taken) {
  if (may_keep_) buffer_of_thread().taken = true;
}

CallScratch::~CallScratch() {
  for (void* memory : pooled_) pool().give_back(memory);
  if (may_keep_) buffer_of_thread().taken = false;
}

void* CallScratch::take(int64_t bytes) {
  if (void* kept = take_kept(bytes)) return fill_if_asked(kept, bytes);
  if (like_.is_cpu() && bytes >= Pool::kLeast) {
    pooled_.push_back(pool().take(bytes));
    return fill_if_asked(pooled_.back(), bytes);
  }
  held_.push_back(new_tensor(like_, {bytes}, torch::headeronly::ScalarType::Byte));
  return held_.back().data_ptr();
}

// Null if the thread's buffer has no room; it grows only while unused.
void* CallScratch::take_kept(int64_t bytes) {
  Buffer& buffer = buffer_of_thread();
  if (!may_keep_ || bytes > kKept - used_) return nullptr;
  if (bytes > buffer.bytes - used_) {
    if (used_ > 0) return nullptr;
    buffer.bytes = 0;  // the allocation may throw
    buffer.memory.reset();
    buffer.memory.reset(allocate_aligned(rounded_up(bytes), kAlignment));
    buffer.bytes = rounded_up(bytes);
  }
  void* memory = static_cast<char*>(buffer.memory.get()) + used_;
  used_ += rounded_up(bytes);
  return memory;
}

void KeptScratch::Free::operator()(void* memory) const { fused_rnn::Free{}(memory); }

void* KeptScratch::take(int64_t bytes) {
  if (next_ == blocks_.size()) blocks_.emplace_back();
  Block& block = blocks_[next_++];
  if (block.bytes < bytes || !block.memory) {
    block.bytes = 0;  // the allocation may throw
    block.memory.reset();
    block.memory.reset(allocate_aligned(rounded_up(bytes), kAlignment));
    block.bytes = bytes;
  }
  return fill_if_asked(block.memory.get(), bytes);
}

}  // namespace fused_rnn
