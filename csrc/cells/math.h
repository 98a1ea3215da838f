// The functions that cells call, for every arithmetic type a cell may be instantiated with.
//
// float and double are served here, on the host and in CUDA device code. A SIMD vector type brings its own, which
// argument-dependent lookup finds; nothing in a cell changes. Of those that the library's own cells do not call, only
// the CPU's vectors (cpu/simd/more_functions.h) and dual numbers have all.
//
// Everything is in an anonymous namespace: this header is compiled for several instruction sets, and the linker must
// never use one set's copy for another.
#pragma once
#include <math.h>

#include "cells/function.h"

namespace fused_rnn {
namespace {

// Typed wrappers: unqualified exp(float) inside a template may otherwise resolve to the double overload.
FUSED_RNN_FN float exp(float x) { return ::expf(x); }
FUSED_RNN_FN double exp(double x) { return ::exp(x); }
FUSED_RNN_FN float tanh(float x) { return ::tanhf(x); }
FUSED_RNN_FN double tanh(double x) { return ::tanh(x); }

// NaN stays NaN.
FUSED_RNN_FN float relu(float x) { return x < 0.f ? 0.f : x; }
FUSED_RNN_FN double relu(double x) { return x < 0. ? 0. : x; }

// 1 where x > 0, else 0; NaN stays NaN here too.
FUSED_RNN_FN float positive(float x) { return x > 0.f ? 1.f : x == x ? 0.f : x; }
FUSED_RNN_FN double positive(double x) { return x > 0. ? 1. : x == x ? 0. : x; }

// Where torch has the function, NaN and infinities give what torch's gives.
#define FUSED_RNN_WRAP(name)                                \
  FUSED_RNN_FN float name(float x) { return ::name##f(x); } \
  FUSED_RNN_FN double name(double x) { return ::name(x); }
FUSED_RNN_WRAP(log)
FUSED_RNN_WRAP(log1p)
FUSED_RNN_WRAP(expm1)
FUSED_RNN_WRAP(sqrt)
FUSED_RNN_WRAP(sin)
FUSED_RNN_WRAP(cos)
FUSED_RNN_WRAP(erf)
#undef FUSED_RNN_WRAP
FUSED_RNN_FN float pow(float x, float y) { return ::powf(x, y); }
FUSED_RNN_FN double pow(double x, double y) { return ::pow(x, y); }
FUSED_RNN_FN float abs(float x) { return ::fabsf(x); }
FUSED_RNN_FN double abs(double x) { return ::fabs(x); }

// Comparisons give 1 or 0; with NaN, 0. `select` takes b where mask is 0, else a, whatever the other one is.
#define FUSED_RNN_COMPARE(T)                                                   \
  FUSED_RNN_FN T less(T a, T b) { return a < b ? T(1) : T(0); }                \
  FUSED_RNN_FN T less_equal(T a, T b) { return a <= b ? T(1) : T(0); }         \
  FUSED_RNN_FN T equal(T a, T b) { return a == b ? T(1) : T(0); }              \
  FUSED_RNN_FN T select(T mask, T a, T b) { return mask != T(0) ? a : b; }     \
  FUSED_RNN_FN T sign(T x) { return T((x > T(0)) - (x < T(0))); } /* NaN: 0 */ \
  /* NaN if either is. */                                                      \
  FUSED_RNN_FN T minimum(T a, T b) { return a < b || a != a ? a : b; }         \
  FUSED_RNN_FN T maximum(T a, T b) { return a > b || a != a ? a : b; }
FUSED_RNN_COMPARE(float)
FUSED_RNN_COMPARE(double)
#undef FUSED_RNN_COMPARE

// exp(-x) overflows to infinity for very negative x; 1 / (1 + inf) is then the right limit, 0.
template <class T>
FUSED_RNN_FN T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

// Derivatives take the activation's output, which is what the forward pass saves.
template <class T>
FUSED_RNN_FN T dsigmoid(T y) {
  return y * (T(1) - y);
}
template <class T>
FUSED_RNN_FN T dtanh(T y) {
  return T(1) - y * y;
}
template <class T>
FUSED_RNN_FN T drelu(T y) {
  return positive(y);
}

}  // namespace
}  // namespace fused_rnn
