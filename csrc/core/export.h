// C functions for ctypes, without tensors.
#pragma once
#include <cstdint>
#include <cstdio>
#include <exception>

#ifdef _WIN32
#define FUSED_RNN_EXPORT extern "C" __declspec(dllexport)
#else
#define FUSED_RNN_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace fused_rnn {
namespace {

// Whether f ran without an exception; otherwise `reason` holds its message.
template <class F>
bool succeeds(char* reason, int64_t reason_size, F f) {
  try {
    f();
    return true;
  } catch (const std::exception& e) {
    std::snprintf(reason, reason_size, "%s", e.what());
    return false;
  }
}

}  // namespace
}  // namespace fused_rnn
