#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

// A test's cell: it proves that the contract (csrc/cells/cells.h) allows more than two states, which need not begin at
// zero, and functions beyond those of the library's own cells.
//
// sLSTM: exponential input and forget gates, and a stabiliser m that keeps them from overflowing.
//   m_next = max(f + m, i)      i' = exp(i - m_next)    f' = exp(f + m - m_next)
//   c_next = f' c + i' tanh(g)  n_next = f' n + i'      h_next = sigmoid(o) c_next / n_next
// Gate order i, f, g, o; states h, c, n, m. The gradient of maximum goes to its larger argument, and half each way
// between equal ones.
struct Slstm {
  static constexpr int kGates = 4;
  static constexpr int kStates = 4;
  static constexpr int kSaved = 4;
  static constexpr int kParams = 0;
  static constexpr bool kRecurrent = true;
  static constexpr int kSharedGates = kGates;
  static constexpr bool kReadsH = false;
  static constexpr bool kProjectable = false;
  static constexpr double kInitial[kStates] = {0, 0, 0, -INFINITY};

  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T* r, const T* state, const T*, T* state_next, T* saved) {
    saved[0] = x[0] + r[0];
    saved[1] = x[1] + r[1];
    saved[2] = tanh(x[2] + r[2]);
    saved[3] = sigmoid(x[3] + r[3]);
    advance(saved, state, state_next);
  }

  template <class T>
  FUSED_RNN_FN static void advance(const T* saved, const T* state, T* state_next) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], c = state[1], n = state[2], m = state[3];
    const T m_next = maximum(f + m, i);
    const T in = exp(i - m_next), forget = exp(f + m - m_next);
    const T c_next = forget * c + in * g, n_next = forget * n + in;
    state_next[0] = o * c_next / n_next;
    state_next[1] = c_next;
    state_next[2] = n_next;
    state_next[3] = m_next;
  }

  template <class T>
  FUSED_RNN_FN static void tangent(const T* saved, const T*, const T*, const T* x, const T* r, const T*, T* to) {
    to[0] = x[0] + r[0];
    to[1] = x[1] + r[1];
    to[2] = dtanh(saved[2]) * (x[2] + r[2]);
    to[3] = dsigmoid(saved[3]) * (x[3] + r[3]);
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T* state_next, const T*, T* dstate_next,
                                    T* dx, T* dr, T* dstate, T*) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], c = state[1], n = state[2], m = state[3];
    const T c_next = state_next[1], n_next = state_next[2], m_next = state_next[3];
    const T in = exp(i - m_next), forget = exp(f + m - m_next);
    const T dh = dstate_next[0];
    const T dc = dstate_next[1] + dh * o / n_next;
    const T dn = dstate_next[2] - dh * o * c_next / (n_next * n_next);
    const T to_in = (dc * g + dn) * in, to_forget = (dc * c + dn * n) * forget;
    const T dm = dstate_next[3] - to_in - to_forget;
    const T larger = select(equal(f + m, i), T(0.5), less(i, f + m));
    dx[0] = dr[0] = to_in + dm * (T(1) - larger);
    dx[1] = dr[1] = to_forget + dm * larger;
    dx[2] = dr[2] = dc * in * dtanh(g);
    dx[3] = dr[3] = dh * c_next / n_next * dsigmoid(o);
    dstate[0] = T(0);  // h enters only through r
    dstate[1] = dc * forget;
    dstate[2] = dn * forget;
    dstate[3] = dx[1];
    dstate_next[1] = dc;
    dstate_next[2] = dn;
    dstate_next[3] = dm;
  }
};

}  // namespace
}  // namespace fused_rnn
