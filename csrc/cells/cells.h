// The registry of cells, and the contract of a cell.
//
// A cell is the elementwise part of one step for one hidden unit. It gets x = W_ih x_t + b_ih and r = W_hh h + b_hh
// separately (GRU's candidate needs that) and knows nothing of weights, biases, batches or time:
//
//   kGates            values of x and of r
//   kStates           values carried from step to step, at most kMostStates; the first is h, which is also the output
//   kSaved            values that forward saves for backward
//   kParams           per-unit parameters (peepholes), read from `params`
//   kRecurrent        false: there is no W_hh, r is not read and dr is not written
//   kSharedGates      for this many leading gates dr equals dx, or there is no dr
//   kReadsH           false: state[0] is never read, h enters through r alone, and dstate[0] is zero
//   kProjectable      true: h may be projected to another width (proj_size), which needs kReadsH false
//   kOutputGate       if there is one: h = o * tanh(second state), with o the saved value of this number
//   kInitial[kStates] the states before the first step, unless given, and after a reset; may be infinite
//
//   forward(x[kGates], r[kGates], state[kStates], params[kParams] -> state_next[kStates], saved[kSaved])
//   advance(saved, state -> state_next)     recomputes forward's result from the saved values
//   backward(saved, state, state_next, params, dstate_next -> dx[kGates], dr[kGates], dstate[kStates],
//   dparams[kParams])
//       dstate_next: in, the gradient that reaches the state from outside the step; out, its full gradient, including
//       contributions inside the step (LSTM: c_next through h_next).
//   tangent(saved, state, params, x, r, dstate -> dsaved[kSaved])
//       the tangent of `saved`; x, r and dstate are tangents.
//
//   backward_of(saved, state, d_o, dc -> dx, dr, dstate)       with kOutputGate: where c is normalised before its tanh
//
// advance and backward are also called with dual numbers (dual.h).
//
// To add a cell: write its header, include it here and give it a row below. CONTRIBUTING.md walks through it.
#pragma once
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace fused_rnn {
namespace {

// Whether dx and dr are equal, so that one copy of the gate gradients is enough.
template <class Cell>
constexpr bool kOneGateGradient = Cell::kSharedGates == Cell::kGates;

// Most gates and states of a cell.
constexpr int kMostGates = 8, kMostStates = 8;

// Whether all states are zero before the first step.
template <class Cell>
constexpr bool kStartsAtZero = [] {
  for (const double initial : Cell::kInitial)
    if (initial != 0) return false;
  return true;
}();

}  // namespace
}  // namespace fused_rnn

// X(id, type). Ids are part of the operators' contract: append, never renumber. fused_rnn/ops/cells.py names them. A
// build of the kernels for a cell that is registered at run time has that one alone (cpu/plug_in.cpp).
#ifdef FUSED_RNN_OWN_CELL
#include FUSED_RNN_OWN_CELL
#define FUSED_RNN_CELLS(X) X(FUSED_RNN_OWN_ID, Own)
#else
#define FUSED_RNN_CELLS(X) \
  X(0, Lstm)               \
  X(1, Gru)                \
  X(2, RnnTanh)            \
  X(3, RnnRelu)
#endif
