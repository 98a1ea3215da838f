#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

// Gated recurrent unit, PyTorch's form: the reset gate acts after the recurrent product, and z = 1 keeps the memory.
//   reset, z = sigmoid(x + r)    n = tanh(x_n + reset * r_n)
//   h_next   = n + z * (h - n)
// Gate order reset, z, n; state h.
struct Gru {
  static constexpr int kGates = 3;
  static constexpr int kStates = 1;
  static constexpr int kSaved = 4;
  static constexpr int kParams = 0;
  static constexpr bool kRecurrent = true;
  static constexpr int kSharedGates = 2;  // the candidate's x and r enter differently
  static constexpr bool kReadsH = true;
  static constexpr bool kProjectable = false;
  static constexpr double kInitial[kStates] = {0};

  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T* r, const T* state, const T*, T* state_next, T* saved) {
    const T reset = sigmoid(x[0] + r[0]);
    const T z = sigmoid(x[1] + r[1]);
    const T n = tanh(x[2] + reset * r[2]);
    saved[0] = reset;
    saved[1] = z;
    saved[2] = n;
    saved[3] = r[2];
    advance(saved, state, state_next);
  }

  template <class T>
  FUSED_RNN_FN static void advance(const T* saved, const T* state, T* state_next) {
    const T z = saved[1], n = saved[2], h = state[0];
    state_next[0] = n + z * (h - n);
  }

  template <class T>
  FUSED_RNN_FN static void tangent(const T* saved, const T*, const T*, const T* x, const T* r, const T*, T* to) {
    const T reset = saved[0], z = saved[1], n = saved[2], r_n = saved[3];
    to[0] = dsigmoid(reset) * (x[0] + r[0]);
    to[1] = dsigmoid(z) * (x[1] + r[1]);
    to[2] = dtanh(n) * (x[2] + to[0] * r_n + reset * r[2]);
    to[3] = r[2];
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T*, const T*, T* dstate_next, T* dx, T* dr,
                                    T* dstate, T*) {
    const T reset = saved[0], z = saved[1], n = saved[2], r_n = saved[3], h = state[0];
    const T dh = dstate_next[0];
    const T dn = dh * (T(1) - z) * dtanh(n);
    dx[0] = dr[0] = dn * r_n * dsigmoid(reset);
    dx[1] = dr[1] = dh * (h - n) * dsigmoid(z);
    dx[2] = dn;
    dr[2] = dn * reset;
    dstate[0] = dh * z;
  }
};

}  // namespace
}  // namespace fused_rnn
