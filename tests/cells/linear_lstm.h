#pragma once
#include "cells/lstm.h"

namespace fused_rnn {
namespace {

// A test's cell: an LSTM whose output is not squashed, h_next = o * c_next. It proves that only the cell knows what h
// is before a projection.
struct LinearLstm : Lstm {
  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T* r, const T* state, const T* params, T* state_next, T* saved) {
    Lstm::forward(x, r, state, params, state_next, saved);
    advance(saved, state, state_next);
  }

  template <class T>
  FUSED_RNN_FN static void advance(const T* saved, const T* state, T* state_next) {
    Lstm::advance(saved, state, state_next);
    state_next[0] = saved[3] * state_next[1];
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T* state_next, const T*, T* dstate_next,
                                    T* dx, T* dr, T* dstate, T*) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], c = state[1];
    const T dh = dstate_next[0], dc = dstate_next[1] + dh * o;
    dx[0] = dr[0] = dc * g * dsigmoid(i);
    dx[1] = dr[1] = dc * c * dsigmoid(f);
    dx[2] = dr[2] = dc * i * dtanh(g);
    dx[3] = dr[3] = dh * state_next[1] * dsigmoid(o);
    dstate[0] = T(0);  // h reaches this step only through r
    dstate[1] = dc * f;
    dstate_next[1] = dc;
  }
};

}  // namespace
}  // namespace fused_rnn
