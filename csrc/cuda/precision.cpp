#include <dlfcn.h>

#include "cuda/plan.h"

namespace fused_rnn {
namespace {

// at::globalContext() and at::Context::allowTF32CuBLAS() const, which no stable header has and the library must not
// link to: looked up by name. Where they are not found, nothing is rounded.
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
  return context && allows && allows(context());
}

}  // namespace fused_rnn
