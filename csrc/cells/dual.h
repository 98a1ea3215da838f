// Dual numbers: a value and its tangent. Instantiating a cell with them differentiates it in forward mode.
#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

template <class T>
struct Dual {
  T value, tangent;

  Dual() = default;
  FUSED_RNN_FN explicit Dual(int constant) : value(T(constant)), tangent(T(0)) {}
  FUSED_RNN_FN Dual(T value, T tangent) : value(value), tangent(tangent) {}

  FUSED_RNN_FN friend Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.tangent + b.tangent}; }
  FUSED_RNN_FN friend Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.tangent - b.tangent}; }
  FUSED_RNN_FN friend Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
  }
  FUSED_RNN_FN friend Dual operator/(Dual a, Dual b) {
    const T quotient = a.value / b.value;
    return {quotient, (a.tangent - quotient * b.tangent) / b.value};
  }
  FUSED_RNN_FN friend Dual operator-(Dual a) { return {-a.value, -a.tangent}; }
};

template <class T>
FUSED_RNN_FN Dual<T> exp(Dual<T> x) {
  const T y = exp(x.value);
  return {y, y * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> tanh(Dual<T> x) {
  const T y = tanh(x.value);
  return {y, dtanh(y) * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> relu(Dual<T> x) {
  return {relu(x.value), positive(x.value) * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> positive(Dual<T> x) {
  return {positive(x.value), T(0)};
}

}  // namespace
}  // namespace fused_rnn
