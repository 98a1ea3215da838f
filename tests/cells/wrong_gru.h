#pragma once
#include "cells/gru.h"

namespace fused_rnn {
namespace {

// A test's cell: a GRU whose gradient has a wrong sign, which every check must detect.
struct WrongGru : Gru {
  template <class T>
  FUSED_RNN_FN static void backward(const T* saved, const T* state, const T* state_next, const T* params,
                                    T* dstate_next, T* dx, T* dr, T* dstate, T* dparams) {
    Gru::backward(saved, state, state_next, params, dstate_next, dx, dr, dstate, dparams);
    dx[1] = dr[1] = -dx[1];
  }
};

}  // namespace
}  // namespace fused_rnn
