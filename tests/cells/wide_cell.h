#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

// A test's cell: more gates than a panel has vectors, three states that begin anywhere, gates whose x and r enter
// differently, per-unit parameters p, and h itself.
//   a = sigmoid(x0 + r0 + p0 s)    b = tanh(x1 + r1)        e = sigmoid(x2 + r2 + p1 q)
//   s_next = a s + (1 - a) b + 0.1 (x3 + r3 / 2)            q_next = e q + 0.2 tanh(x4 - r4)
//   h_next = 0.5 h + tanh(s_next) e + 0.1 x5 r5
struct WideCell {
  static constexpr int kGates = 6;
  static constexpr int kStates = 3;
  static constexpr int kSaved = 7;
  static constexpr int kParams = 2;
  static constexpr bool kRecurrent = true;
  static constexpr int kSharedGates = 3;
  static constexpr bool kReadsH = true;
  static constexpr bool kProjectable = false;
  static constexpr double kInitial[kStates] = {0.5, 0, -1};

  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T* r, const T* state, const T* params, T* state_next, T* saved) {
    saved[0] = sigmoid(x[0] + r[0] + params[0] * state[1]);
    saved[1] = tanh(x[1] + r[1]);
    saved[2] = sigmoid(x[2] + r[2] + params[1] * state[2]);
    saved[3] = x[3] + T(0.5) * r[3];
    saved[4] = tanh(x[4] - r[4]);
    saved[5] = x[5];
    saved[6] = r[5];
    advance(saved, state, state_next);
  }

  template <class T>
  FUSED_RNN_FN static void advance(const T* saved, const T* state, T* state_next) {
    const T a = saved[0], b = saved[1], e = saved[2];
    const T s_next = a * state[1] + (T(1) - a) * b + T(0.1) * saved[3];
    state_next[0] = T(0.5) * state[0] + tanh(s_next) * e + T(0.1) * saved[5] * saved[6];
    state_next[1] = s_next;
    state_next[2] = e * state[2] + T(0.2) * saved[4];
  }

  template <class T>
  FUSED_RNN_FN static void tangent(const T* saved, const T*, const T* params, const T* x, const T* r, const T* dstate,
                                   T* to) {
    to[0] = dsigmoid(saved[0]) * (x[0] + r[0] + params[0] * dstate[1]);
    to[1] = dtanh(saved[1]) * (x[1] + r[1]);
    to[2] = dsigmoid(saved[2]) * (x[2] + r[2] + params[1] * dstate[2]);
    to[3] = x[3] + T(0.5) * r[3];
    to[4] = dtanh(saved[4]) * (x[4] - r[4]);
    to[5] = x[5];
    to[6] = r[5];
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T* state_next, const T* params,
                                    T* dstate_next, T* dx, T* dr, T* dstate, T* dparams) {
    const T a = saved[0], b = saved[1], e = saved[2], dh = dstate_next[0], dq = dstate_next[2];
    const T tanh_s = tanh(state_next[1]), ds = dstate_next[1] + dh * e * dtanh(tanh_s);
    dx[0] = dr[0] = ds * (state[1] - b) * dsigmoid(a);
    dx[1] = dr[1] = ds * (T(1) - a) * dtanh(b);
    dx[2] = dr[2] = (dh * tanh_s + dq * state[2]) * dsigmoid(e);
    dx[3] = T(0.1) * ds;
    dr[3] = T(0.05) * ds;
    dx[4] = T(0.2) * dq * dtanh(saved[4]);
    dr[4] = -dx[4];
    dx[5] = T(0.1) * dh * saved[6];
    dr[5] = T(0.1) * dh * saved[5];
    dparams[0] = dx[0] * state[1];
    dparams[1] = dx[2] * state[2];
    dstate[0] = T(0.5) * dh;
    dstate[1] = ds * a + dx[0] * params[0];
    dstate[2] = dq * e + dx[2] * params[1];
    dstate_next[1] = ds;
  }
};

}  // namespace
}  // namespace fused_rnn
