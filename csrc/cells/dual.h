// Dual numbers: a value and its tangent. Instantiating a cell with them differentiates it in forward mode.
#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

template <class T>
struct Dual {
  T value, tangent;

  Dual() = default;
  FUSED_RNN_FN explicit Dual(double constant) : value(T(constant)), tangent(T(0)) {}
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
// By its own derivative: that of 1 / (1 + exp(-x)) would be infinity over infinity.
template <class T>
FUSED_RNN_FN Dual<T> sigmoid(Dual<T> x) {
  const T y = sigmoid(x.value);
  return {y, dsigmoid(y) * x.tangent};
}

// ---- functions of cells that are registered at run time --------------------------------------------------------------

template <class T>
FUSED_RNN_FN Dual<T> log(Dual<T> x) {
  return {log(x.value), x.tangent / x.value};
}
template <class T>
FUSED_RNN_FN Dual<T> log1p(Dual<T> x) {
  return {log1p(x.value), x.tangent / (T(1) + x.value)};
}
template <class T>
FUSED_RNN_FN Dual<T> expm1(Dual<T> x) {
  const T y = expm1(x.value);
  return {y, (y + T(1)) * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> sqrt(Dual<T> x) {
  const T y = sqrt(x.value);
  return {y, x.tangent / (y + y)};
}
template <class T>
FUSED_RNN_FN Dual<T> sin(Dual<T> x) {
  return {sin(x.value), cos(x.value) * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> cos(Dual<T> x) {
  return {cos(x.value), -sin(x.value) * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> erf(Dual<T> x) {
  constexpr double kTwoOverRootPi = 1.1283791670955126;
  return {erf(x.value), T(kTwoOverRootPi) * exp(-(x.value * x.value)) * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> abs(Dual<T> x) {
  return {abs(x.value), sign(x.value) * x.tangent};
}
template <class T>
FUSED_RNN_FN Dual<T> sign(Dual<T> x) {
  return {sign(x.value), T(0)};
}

// Each part counts only where it may not be zero times infinity, as in torch.
template <class T>
FUSED_RNN_FN Dual<T> pow(Dual<T> x, Dual<T> y) {
  const T zero = T(0), z = pow(x.value, y.value);
  const T to_x = y.value * pow(x.value, y.value - T(1)) * x.tangent, to_y = z * log(x.value) * y.tangent;
  const T at_zero = equal(x.value, zero) * less_equal(zero, y.value);
  return {z,
          select(equal(y.value, zero), zero, to_x) + select(equal(y.tangent, zero), zero, select(at_zero, zero, to_y))};
}
// Between equal numbers each tangent counts half, as in torch.
template <class T>
FUSED_RNN_FN Dual<T> minimum(Dual<T> a, Dual<T> b) {
  const T half = T(0.5) * (a.tangent + b.tangent), some = select(less(a.value, b.value), a.tangent, b.tangent);
  return {minimum(a.value, b.value), select(equal(a.value, b.value), half, some)};
}
template <class T>
FUSED_RNN_FN Dual<T> maximum(Dual<T> a, Dual<T> b) {
  const T half = T(0.5) * (a.tangent + b.tangent), some = select(less(b.value, a.value), a.tangent, b.tangent);
  return {maximum(a.value, b.value), select(equal(a.value, b.value), half, some)};
}

template <class T>
FUSED_RNN_FN Dual<T> less(Dual<T> a, Dual<T> b) {
  return {less(a.value, b.value), T(0)};
}
template <class T>
FUSED_RNN_FN Dual<T> less_equal(Dual<T> a, Dual<T> b) {
  return {less_equal(a.value, b.value), T(0)};
}
template <class T>
FUSED_RNN_FN Dual<T> equal(Dual<T> a, Dual<T> b) {
  return {equal(a.value, b.value), T(0)};
}
template <class T>
FUSED_RNN_FN Dual<T> select(Dual<T> mask, Dual<T> a, Dual<T> b) {
  return {select(mask.value, a.value, b.value), select(mask.value, a.tangent, b.tangent)};
}

}  // namespace
}  // namespace fused_rnn
