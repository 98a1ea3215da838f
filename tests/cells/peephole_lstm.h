// A test's cell: it proves that the contract (csrc/cells/cells.h) allows per-unit parameters.
#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

// LSTM whose gates also see the unit's own c.
//   i, f   = sigmoid(x + r + p * c)    g = tanh(x + r)    o = sigmoid(x + r + p * c_next)
//   c_next = f * c + i * g             h_next = o * tanh(c_next)
// Gate order i, f, g, o; states h, c; parameters p of i, f, o.
struct PeepholeLstm {
  static constexpr int kGates = 4;
  static constexpr int kStates = 2;
  static constexpr int kSaved = 4;
  static constexpr int kParams = 3;
  static constexpr bool kRecurrent = true;
  static constexpr int kSharedGates = kGates;
  static constexpr bool kReadsH = false;
  static constexpr bool kProjectable = true;
  static constexpr double kInitial[kStates] = {0, 0};

  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T* r, const T* state, const T* params, T* state_next, T* saved) {
    const T c = state[1];
    saved[0] = sigmoid(x[0] + r[0] + params[0] * c);
    saved[1] = sigmoid(x[1] + r[1] + params[1] * c);
    saved[2] = tanh(x[2] + r[2]);
    const T c_next = saved[1] * c + saved[0] * saved[2];
    saved[3] = sigmoid(x[3] + r[3] + params[2] * c_next);
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
  FUSED_RNN_FN static void tangent(const T* saved, const T* state, const T* params, const T* x, const T* r,
                                   const T* dstate, T* to) {
    const T i = saved[0], f = saved[1], g = saved[2], c = state[1], dc = dstate[1];
    to[0] = dsigmoid(i) * (x[0] + r[0] + params[0] * dc);
    to[1] = dsigmoid(f) * (x[1] + r[1] + params[1] * dc);
    to[2] = dtanh(g) * (x[2] + r[2]);
    const T dc_next = f * dc + to[1] * c + i * to[2] + to[0] * g;
    to[3] = dsigmoid(saved[3]) * (x[3] + r[3] + params[2] * dc_next);
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T* state_next, const T* params,
                                    T* dstate_next, T* dx, T* dr, T* dstate, T* dparams) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], c = state[1], c_next = state_next[1];
    const T dh = dstate_next[0];
    const T tanh_c = tanh(c_next);
    dx[3] = dr[3] = dh * tanh_c * dsigmoid(o);
    const T dc = dstate_next[1] + dh * o * dtanh(tanh_c) + dx[3] * params[2];
    dx[0] = dr[0] = dc * g * dsigmoid(i);
    dx[1] = dr[1] = dc * c * dsigmoid(f);
    dx[2] = dr[2] = dc * i * dtanh(g);
    dparams[0] = dx[0] * c;
    dparams[1] = dx[1] * c;
    dparams[2] = dx[3] * c_next;
    dstate[0] = T(0);  // h reaches this step only through r
    dstate[1] = dc * f + dx[0] * params[0] + dx[1] * params[1];
    dstate_next[1] = dc;
  }
};

}  // namespace
}  // namespace fused_rnn
