// Functions of one number for the tests, on whole vectors and on scalars. Include what they are declared in first.
#pragma once
#include "cpu/simd/vector.h"

namespace {

using fused_rnn::cpu::Vec;

// Calls f(Type, j) over [0, n): whole vectors first, then scalars.
template <class T, class F>
void for_lanes(int64_t n, F f) {
  int64_t j = 0;
  for (; j + Vec<T>::kLanes <= n; j += Vec<T>::kLanes) f(Vec<T>{}, j);
  for (; j < n; ++j) f(T{}, j);
}

}  // namespace

// clang-format off
// extern "C" name_T(to, from, n).
#define UNARY(name, T)                                                                             \
  namespace both { using fused_rnn::name; using fused_rnn::cpu::name; }                            \
  extern "C" void name##_##T(T* to, const T* from, int64_t n) {                                    \
    for_lanes<T>(n, [&](auto lanes, int64_t j) {                                                   \
      store_lanes(to + j, both::name(load_lanes<decltype(lanes)>(from + j)));                      \
    });                                                                                            \
  }
