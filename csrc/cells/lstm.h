#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

// Long short-term memory.
//   i, f, o = sigmoid(x + r)    g = tanh(x + r)
//   c_next  = f * c + i * g     h_next = o * tanh(c_next)
// Gate order i, f, g, o; states h, c.
struct Lstm {
  static constexpr int kGates = 4;
  static constexpr int kStates = 2;
  static constexpr int kSaved = 4;
  static constexpr int kParams = 0;
  static constexpr bool kRecurrent = true;
  static constexpr int kSharedGates = kGates;
  static constexpr bool kReadsH = false;
  static constexpr bool kProjectable = true;
  static constexpr double kInitial[kStates] = {0, 0};
  static constexpr int kOutputGate = 3;

  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T* r, const T* state, const T*, T* state_next, T* saved) {
    saved[0] = sigmoid(x[0] + r[0]);
    saved[1] = sigmoid(x[1] + r[1]);
    saved[2] = tanh(x[2] + r[2]);
    saved[3] = sigmoid(x[3] + r[3]);
    advance(saved, state, state_next);
  }

  template <class T>
  FUSED_RNN_FN static void advance(const T* saved, const T* state, T* state_next) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], c = state[1];
    const T c_next = f * c + i * g;
    state_next[0] = o * tanh(c_next);
    state_next[1] = c_next;
  }

  template <class T>
  FUSED_RNN_FN static void tangent(const T* saved, const T*, const T*, const T* x, const T* r, const T*, T* to) {
    to[0] = dsigmoid(saved[0]) * (x[0] + r[0]);
    to[1] = dsigmoid(saved[1]) * (x[1] + r[1]);
    to[2] = dtanh(saved[2]) * (x[2] + r[2]);
    to[3] = dsigmoid(saved[3]) * (x[3] + r[3]);
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T* state_next, const T*, T* dstate_next,
                                    T* dx, T* dr, T* dstate, T*) {
    const T o = saved[3], dh = dstate_next[0];
    // tanh is recomputed from c_next: h / o would be 0 / 0 when o saturates.
    const T tanh_c = tanh(state_next[1]);
    dstate_next[1] = dstate_next[1] + dh * o * dtanh(tanh_c);
    backward_of(saved, state, dh * tanh_c, dstate_next[1], dx, dr, dstate);
  }

  // From the gradients of the output gate and of c_next.
  template <class T>
  FUSED_RNN_FN static void backward_of(const T* saved, const T* state, T d_o, T dc, T* dx, T* dr, T* dstate) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], c = state[1];
    dx[0] = dr[0] = dc * g * dsigmoid(i);
    dx[1] = dr[1] = dc * c * dsigmoid(f);
    dx[2] = dr[2] = dc * i * dtanh(g);
    dx[3] = dr[3] = d_o * dsigmoid(o);
    dstate[0] = T(0);  // h enters only through r
    dstate[1] = dc * f;
  }
};

}  // namespace
}  // namespace fused_rnn
