#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

struct Tanh {
  template <class T>
  FUSED_RNN_FN static T apply(T x) {
    return tanh(x);
  }
  template <class T>
  FUSED_RNN_FN static T derivative(T y) {
    return dtanh(y);
  }
};

struct Relu {
  template <class T>
  FUSED_RNN_FN static T apply(T x) {
    return relu(x);
  }
  template <class T>
  FUSED_RNN_FN static T derivative(T y) {
    return drelu(y);
  }
};

// Elman network: h_next = activation(x + r). State h.
template <class Activation>
struct Rnn {
  static constexpr int kGates = 1;
  static constexpr int kStates = 1;
  static constexpr int kSaved = 1;
  static constexpr int kParams = 0;
  static constexpr bool kRecurrent = true;
  static constexpr int kSharedGates = kGates;
  static constexpr bool kReadsH = false;
  static constexpr bool kProjectable = false;
  static constexpr double kInitial[kStates] = {0};

  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T* r, const T* state, const T*, T* state_next, T* saved) {
    saved[0] = Activation::apply(x[0] + r[0]);
    advance(saved, state, state_next);
  }

  template <class T>
  FUSED_RNN_FN static void advance(const T* saved, const T*, T* state_next) {
    state_next[0] = saved[0];
  }

  template <class T>
  FUSED_RNN_FN static void tangent(const T* saved, const T*, const T*, const T* x, const T* r, const T*, T* to) {
    to[0] = Activation::derivative(saved[0]) * (x[0] + r[0]);
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T*, const T*, const T*, T* dstate_next, T* dx, T* dr,
                                    T* dstate, T*) {
    dx[0] = dr[0] = dstate_next[0] * Activation::derivative(saved[0]);
    dstate[0] = T(0);  // h enters only through r
  }
};

using RnnTanh = Rnn<Tanh>;
using RnnRelu = Rnn<Relu>;

}  // namespace
}  // namespace fused_rnn
