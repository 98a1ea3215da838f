#include "memory.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <new>

namespace fused_rnn {
namespace {

constexpr int64_t kAlignment = 64;

std::atomic<bool> filled = false;

void* fill_if_asked(void* memory, int64_t bytes) {
  if (filled.load(std::memory_order_relaxed) && bytes > 0) std::memset(memory, 0xff, bytes);
  return memory;
}

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
};

struct Buffer {
  std::unique_ptr<void, Free> memory;
  int64_t bytes = 0;
  bool taken = false;  // by a call on this thread, inside of which another may run
};

Buffer& buffer_of_thread() {
  static thread_local Buffer buffer;
  return buffer;
}

int64_t rounded_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void fill_memory(bool fill) { filled = fill; }

// Not torch::stable::new_empty, which goes through the dispatcher: half a microsecond each.
Tensor new_tensor(const Tensor& like, const Shape& shape, std::optional<torch::headeronly::ScalarType> dtype) {
  int32_t dtype_code, device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype_code));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  if (dtype) dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  int64_t strides[Shape::kMaxDims], numel = 1;
  for (int64_t i = shape.size(); i-- > 0;) {
    const bool last = i + 1 == shape.size();
    strides[i] = last ? 1 : strides[i + 1] * std::max<int64_t>(shape[i + 1], 1);  // never zero, as torch has it
    numel *= shape[i];
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(shape.size(), shape.begin(), strides, dtype_code, device_type, device_index, &handle));
  Tensor tensor(handle);
  if (device_type == aoti_torch_device_type_cpu())
    fill_if_asked(tensor.data_ptr(), numel * static_cast<int64_t>(tensor.element_size()));
  return tensor;
}

CallScratch::CallScratch(const Tensor& like) : like_(like), may_keep_(like.is_cpu() && !buffer_of_thread().taken) {
  if (may_keep_) buffer_of_thread().taken = true;
}

CallScratch::~CallScratch() {
  if (may_keep_) buffer_of_thread().taken = false;
}

void* CallScratch::take(int64_t bytes) {
  if (void* kept = take_kept(bytes)) return fill_if_asked(kept, bytes);
  held_.push_back(new_tensor(like_, {bytes}, torch::headeronly::ScalarType::Byte));
  return held_.back().data_ptr();
}

// Null when the thread's buffer has no room. It grows only while nothing lies in it.
void* CallScratch::take_kept(int64_t bytes) {
  Buffer& buffer = buffer_of_thread();
  if (!may_keep_ || bytes > kKept - used_) return nullptr;
  if (bytes > buffer.bytes - used_) {
    if (used_ > 0) return nullptr;
    buffer.bytes = 0;  // should the next line throw
    buffer.memory.reset();
    buffer.memory.reset(::operator new(rounded_up(bytes), std::align_val_t{kAlignment}));
    buffer.bytes = rounded_up(bytes);
  }
  void* memory = static_cast<char*>(buffer.memory.get()) + used_;
  used_ += rounded_up(bytes);
  return memory;
}

}  // namespace fused_rnn
