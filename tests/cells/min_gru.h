// A test's cell: it proves that the contract (csrc/cells/cells.h) allows a cell without a recurrent matrix.
#pragma once
#include "cells/math.h"

namespace fused_rnn {
namespace {

// minGRU: what enters the memory depends on the input alone.
//   z = sigmoid(x)    n = x    h_next = h + z * (n - h)
// Gate order z, n; state h.
struct MinGru {
  static constexpr int kGates = 2;
  static constexpr int kStates = 1;
  static constexpr int kSaved = 2;
  static constexpr int kParams = 0;
  static constexpr bool kRecurrent = false;
  static constexpr int kSharedGates = kGates;  // there is no dr
  static constexpr bool kReadsH = true;
  static constexpr bool kProjectable = false;
  static constexpr double kInitial[kStates] = {0};

  template <class T>
  FUSED_RNN_FN static void forward(const T* x, const T*, const T* state, const T*, T* state_next, T* saved) {
    saved[0] = sigmoid(x[0]);
    saved[1] = x[1];
    advance(saved, state, state_next);
  }

  template <class T>
  FUSED_RNN_FN static void advance(const T* saved, const T* state, T* state_next) {
    const T z = saved[0], n = saved[1], h = state[0];
    state_next[0] = h + z * (n - h);
  }

  template <class T>
  FUSED_RNN_FN static void tangent(const T* saved, const T*, const T*, const T* x, const T*, const T*, T* to) {
    to[0] = dsigmoid(saved[0]) * x[0];
    to[1] = x[1];
  }

  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T*, const T*, T* dstate_next, T* dx, T*,
                                    T* dstate, T*) {
    const T z = saved[0], n = saved[1], h = state[0];
    const T dh = dstate_next[0];
    dx[0] = dh * (n - h) * dsigmoid(z);
    dx[1] = dh * z;
    dstate[0] = dh * (T(1) - z);
  }
};

}  // namespace
}  // namespace fused_rnn
