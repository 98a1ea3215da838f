#include "cuda/host/stream.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

namespace fused_rnn::cuda {
namespace {

// The type of aoti_torch_get_current_cuda_stream, which shim.h declares only in CUDA builds of torch.
using GetStream = AOTITorchError (*)(int32_t, void**);

// The stable ABI has this only from torch 2.13 on. Linked to libtorch_cuda, the library would not load with a CPU-only
// torch, and a weak symbol would stay null as torch loads its libraries RTLD_LOCAL: hence the lookup by name.
GetStream find_get_stream() {
  void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  STD_TORCH_CHECK(torch_cuda, "fused_rnn: libtorch_cuda.so is not loaded; is this a torch without CUDA?");
  void* symbol = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
  STD_TORCH_CHECK(symbol, "fused_rnn: libtorch_cuda.so has no aoti_torch_get_current_cuda_stream");
  return reinterpret_cast<GetStream>(symbol);
}

}  // namespace

void* current_cuda_stream(int32_t device) {
  static const GetStream get_stream = find_get_stream();
  void* stream = nullptr;
  const AOTITorchError error = get_stream(device, &stream);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "fused_rnn: torch has no current stream for CUDA device ", device);
  return stream;
}

}  // namespace fused_rnn::cuda
