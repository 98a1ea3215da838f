// Activations and their derivatives, for every arithmetic type a cell may be instantiated with.
//
// float and double are served here, on the host and in CUDA device code. A SIMD vector type brings its own
// exp, tanh, relu and positive, which argument-dependent lookup finds; nothing in a cell changes.
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
