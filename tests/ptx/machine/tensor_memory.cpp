// Where torch's CPU tensors come from while the machine is loaded: memory between fences, so that a kernel that reads
// or writes past a tensor's end is seen, as is one that touches a tensor that is gone.
#undef TORCH_TARGET_VERSION  // the allocator has no stable interface
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <cstring>
#include <new>

#include "allocations.h"

namespace ptx {
namespace {

void release(void* memory) { free_fenced(memory); }

class TensorMemory : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const memory = bytes > 0 ? allocate_fenced(bytes) : nullptr;
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

TensorMemory& tensor_memory() {
  static TensorMemory& only = *new TensorMemory;  // tensors outlive whatever else is
  return only;
}

}  // namespace

// From now on, for the rest of the process.
void take_over_tensor_memory() {
  constexpr uint8_t kPriority = 255;
  c10::SetCPUAllocator(&tensor_memory(), kPriority);
}

}  // namespace ptx
