// Calls a cell's functions on arrays of numbers, for tests in Python: as they are, and with dual numbers.
#pragma once
#include "cells/dual.h"
#include "cells/math.h"

namespace fused_rnn {
namespace {

// In: x, r, states, parameters and gradients of the new states; behind them the tangents of all but the parameters.
// Out: new states, what advance makes of the saved values, gradients of x, r, states, parameters, and the whole
// gradients of the new states; behind them the tangents of all that.
template <class Cell, class T>
void probe(const double* in, double* out) {
  using D = Dual<T>;
  constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kParams = Cell::kParams;
  constexpr int kMoving = 2 * kGates + 2 * kStates;
  constexpr int kOut = 2 * kStates + 2 * kGates + kStates + kParams + kStates;
  T x[kGates], r[kGates], state[kStates], params[kParams + 1], gradient[kStates];
  T move_x[kGates], move_r[kGates], move_state[kStates], move_gradient[kStates];
  const double* moves = in + kMoving + kParams;
  const auto read = [&](T* to, T* move, int count) {
    for (int k = 0; k < count; ++k) to[k] = T(*in++);
    for (int k = 0; move && k < count; ++k) move[k] = T(*moves++);
  };
  read(x, move_x, kGates);
  read(r, move_r, kGates);
  read(state, move_state, kStates);
  read(params, nullptr, kParams);
  read(gradient, move_gradient, kStates);

  T state_next[kStates], saved[Cell::kSaved], move_saved[Cell::kSaved];
  Cell::forward(x, r, state, params, state_next, saved);
  Cell::tangent(saved, state, params, move_x, move_r, move_state, move_saved);

  D d_saved[Cell::kSaved], d_state[kStates], d_next[kStates], d_params[kParams + 1], d_gradient[kStates];
  D dx[kGates], dr[kGates], dstate[kStates], dparams[kParams + 1];
  for (int k = 0; k < Cell::kSaved; ++k) d_saved[k] = {saved[k], move_saved[k]};
  for (int k = 0; k < kStates; ++k) d_state[k] = {state[k], move_state[k]};
  for (int k = 0; k < kStates; ++k) d_gradient[k] = {gradient[k], move_gradient[k]};
  for (int k = 0; k < kParams; ++k) d_params[k] = {params[k], T(0)};
  for (int k = 0; k < kGates; ++k) dr[k] = {T(0), T(0)};
  Cell::advance(d_saved, d_state, d_next);
  Cell::backward(d_saved, d_state, d_next, d_params, d_gradient, dx, dr, dstate, dparams);

  double* tangents = out + kOut;
  const auto write = [&](const D* from, int count) {
    for (int k = 0; k < count; ++k) *out++ = double(from[k].value);
    for (int k = 0; k < count; ++k) *tangents++ = double(from[k].tangent);
  };
  for (int k = 0; k < kStates; ++k) *out++ = double(state_next[k]);
  for (int k = 0; k < kStates; ++k) *tangents++ = double(d_next[k].tangent);
  write(d_next, kStates);
  write(dx, kGates);
  write(dr, kGates);
  write(dstate, kStates);
  write(dparams, kParams);
  write(d_gradient, kStates);
}

}  // namespace
}  // namespace fused_rnn

#define FUSED_RNN_PROBE(name, Cell)                                                                      \
  extern "C" void name(const double* in, double* out, long rows, long width, long out_width, int wide) { \
    for (long k = 0; k < rows; ++k) {                                                                    \
      if (wide)                                                                                          \
        fused_rnn::probe<fused_rnn::Cell, double>(in + k * width, out + k * out_width);                  \
      else                                                                                               \
        fused_rnn::probe<fused_rnn::Cell, float>(in + k * width, out + k * out_width);                   \
    }                                                                                                    \
  }
