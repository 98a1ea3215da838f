#include <dlfcn.h>

#include <exception>

#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

// at::globalContext() and at::Context::allowTF32CuBLAS() const, which are not in the stable ABI: looked up by name.
// TF32 is off if they are not found, or if they throw because the precision was set by the newer fp32_precision.
using GetContext = const void* (*)();
using Allows = bool (*)(const void* context);

template <class F>
F find(const char* name) {
  static void* const torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  return torch ? reinterpret_cast<F>(dlsym(torch, name)) : nullptr;
}

}  // namespace

bool tf32_allowed() {
  static const auto context = find<GetContext>("_ZN2at13globalContextEv");
  static const auto allows = find<Allows>("_ZNK2at7Context15allowTF32CuBLASEv");
  if (!context || !allows) return false;
  try {
    return allows(context());
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace fused_rnn::cuda
