// One step of the forward pass; one thread for each unit, row and problem.
#pragma once
#include "cells/dual.h"
#include "cuda/device/each_unit.cuh"
#include "cuda/device/unrolled.cuh"
#include "cuda/stepwise/zoneout.cuh"

namespace fused_rnn::cuda {
namespace {

// Sets the h of a row, `i` of [Q, B, P], and what the next product reads in its place.
template <class S>
FUSED_RNN_DEVICE void set_h(const Forward& f, const ForwardArrays& a, int64_t i, Arithmetic<S> value) {
  S* h = at<S>(a.h, i);
  store(*h, value);
  if (a.masked_h) store(*at<S>(a.masked_h, i), load(*h) * load(*at<S>(f.h_factor, i)));
}

// Saves the entering h, then stores the new one as state and output.
template <class S>
FUSED_RNN_DEVICE void store_h(const Forward& f, const Place& p, const ForwardArrays& a, int64_t kept, int64_t unit,
                              bool cut, Arithmetic<S> value) {
  const int64_t P = f.output_size;
  S* h = at<S>(a.h, p.state * P + unit);
  if (f.saved) {
    S* saved = at<S>(f.saved, p.by_direction(f) * f.saved_width + entering_h(f, kept) + unit);
    store(*saved, cut ? Arithmetic<S>(0) : load(*h));
  }
  set_h<S>(f, a, p.state * P + unit, value);
  *at<S>(f.output, p.by_row(f) * P + unit) = *h;
}
template <class S>
FUSED_RNN_DEVICE void clear_h(const Forward& f, const Place& p, int64_t kept, int64_t unit) {
  store(*at<S>(f.output, p.by_row(f) * f.output_size + unit), Arithmetic<S>(0));
  if (f.saved) store(*at<S>(f.saved, p.by_direction(f) * f.saved_width + entering_h(f, kept) + unit), Arithmetic<S>(0));
}

// Zeros, for padding.
template <class Cell, class S>
FUSED_RNN_DEVICE void clear_unit(const Forward& f, const Place& p, int64_t unit) {
  using T = Arithmetic<S>;
  if (!is_projected<Cell>(f)) clear_h<S>(f, p, Cell::kSaved, unit);
  for (int s = 1; f.cells && s < Cell::kStates; ++s)
    store(*at<S>(f.cells, further<Cell>(f, p.by_row(f), s, unit)), T(0));
  if (!f.saved) return;
  S* saved = at<S>(f.saved, p.by_direction(f) * f.saved_width + unit);
  for (int k = 0; k < Cell::kSaved; ++k) store(saved[k * f.hidden], T(0));
  for (int s = 1; s < Cell::kStates; ++s) store(saved[entering_state(f, Cell::kSaved, s)], T(0));
}

// Stores the cell's results: saved values, state and output. `cut`: whether the h that entered was zeroed.
template <class Cell, class S>
FUSED_RNN_DEVICE void leave(const Forward& f, const Place& p, const ForwardArrays& a, int64_t unit, bool cut,
                            const Arithmetic<S>* kept, const Arithmetic<S>* state, const Arithmetic<S>* next) {
  const int64_t H = f.hidden;
  if (f.saved) {
    S* saved = at<S>(f.saved, p.by_direction(f) * f.saved_width + unit);
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) store(saved[k * H], kept[k]);
    FUSED_RNN_UNROLL
    for (int s = 1; s < Cell::kStates; ++s) store(saved[entering_state(f, Cell::kSaved, s)], state[s]);
  }
  FUSED_RNN_UNROLL
  for (int s = 1; s < Cell::kStates; ++s) {
    *at<Arithmetic<S>>(a.c, further<Cell>(f, p.state, s, unit)) = next[s];
    if (f.cells) store(*at<S>(f.cells, further<Cell>(f, p.by_row(f), s, unit)), next[s]);
  }
  if (is_projected<Cell>(f))
    store(*at<S>(a.wide_h, p.state * H + unit), next[0]);
  else if (!normalizes_c(f))
    store_h<S>(f, p, a, Cell::kSaved, unit, cut, next[0]);
}

template <class Cell, class S>
__global__ void forward_step(const Forward f, const Step step, const ForwardArrays a) {
  using T = Arithmetic<S>;
  constexpr int G = Cell::kGates;
  for_each(f.hidden, step.rows, problems(f), [&](int64_t unit, int64_t b, int64_t problem) {
    const Place p(f, step, problem, b);
    if (!p.exists) return;
    if (!p.active) return clear_unit<Cell, S>(f, p, unit);
    const int64_t H = f.hidden, P = f.output_size;
    // Where h does not begin at zero, `restart` has written it before W_hh was multiplied by it.
    const bool cut = p.is_cut(f, step, b), h_is_cut = cut && Cell::kInitial[0] == 0;
    const Weights w = pick(f.weights, p.d);
    const T* from_x = at<T>(a.x, (problem * a.x_rows + p.row - pick(a.x_first_row, p.d)) * G * H + unit);
    const T* from_r = at<T>(a.r, p.state * G * H + unit);
    const S* bias_ih = at<S>(w.bias_ih, p.m * G * H + unit);
    const S* bias_hh = at<S>(w.bias_hh, p.m * G * H + unit);
    T x[G], r[G], params[Cell::kParams + 1], state[Cell::kStates], next[Cell::kStates], kept[Cell::kSaved + 1];
    FUSED_RNN_UNROLL
    for (int g = 0; g < G; ++g) {
      x[g] = from_x[g * H] + (bias_ih ? load(bias_ih[g * H]) : T(0));
      if (!Cell::kRecurrent) continue;
      r[g] = (h_is_cut ? T(0) : from_r[g * H]) + (bias_hh ? load(bias_hh[g * H]) : T(0));
    }
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i) params[i] = load(*at<S>(w.params, (p.m * Cell::kParams + i) * H + unit));
    if (Cell::kReadsH || f.zones_out) state[0] = h_is_cut ? T(0) : load(*at<S>(a.h, p.state * P + unit));
    unrolled<Cell::kStates - 1>([&](auto before) {
      constexpr int s = before + 1;
      constexpr double initial = Cell::kInitial[s];
      state[s] = cut ? T(initial) : *at<T>(a.c, further<Cell>(f, p.state, s, unit));
    });
    Cell::forward(x, r, state, params, next, kept);
    if constexpr (requires { Cell::kOutputGate; })
      if (normalizes_c(f)) {
        *at<T>(a.new_c, p.state * H + unit) = next[1];
        *at<T>(a.gate, p.state * H + unit) = kept[Cell::kOutputGate];
      }
    keep_former<Cell>(f, p, unit, state, next);
    leave<Cell, S>(f, p, a, unit, h_is_cut, kept, state, next);
  });
}

// Before W_hh h, of cells whose h does not begin at zero: rows whose state is reset get their first h again.
template <class Cell, class S>
__global__ void restart(const Forward f, const Step step, const ForwardArrays a) {
  constexpr double initial = Cell::kInitial[0];
  for_each(f.output_size, step.rows, problems(f), [&](int64_t unit, int64_t b, int64_t problem) {
    const Place p(f, step, problem, b);
    if (p.is_cut(f, step, b)) set_h<S>(f, a, p.state * f.output_size + unit, Arithmetic<S>(initial));
  });
}

// Instead of forward_step for a tangent (problem.h).
template <class Cell, class S>
__global__ void tangent_step(const Forward f, const Step step, const ForwardArrays a) {
  using T = Arithmetic<S>;
  constexpr int G = Cell::kGates;
  for_each(f.hidden, step.rows, problems(f), [&](int64_t unit, int64_t b, int64_t problem) {
    const Place p(f, step, problem, b);
    if (!p.exists) return;
    if (!p.active) return clear_unit<Cell, S>(f, p, unit);
    const int64_t H = f.hidden;
    const bool cut = p.is_cut(f, step, b);
    const S* tangent_x = at<S>(f.tangent_x, p.by_row(f) * G * H + unit);
    const S* tangent_r = at<S>(f.tangent_r, p.by_row(f) * G * H + unit);
    const T* from_r = at<T>(a.r, p.state * G * H + unit);
    T x[G], r[G], params[Cell::kParams + 1], saved[Cell::kSaved + 1], states[Cell::kStates];
    T kept[Cell::kSaved + 1], state[Cell::kStates], next[Cell::kStates];
    Dual<T> dual_saved[Cell::kSaved + 1], dual_state[Cell::kStates], dual_next[Cell::kStates];
    FUSED_RNN_UNROLL
    for (int g = 0; g < G; ++g) {
      x[g] = tangent_x ? load(tangent_x[g * H]) : T(0);
      if (Cell::kRecurrent) r[g] = (cut ? T(0) : from_r[g * H]) + (tangent_r ? load(tangent_r[g * H]) : T(0));
    }
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i)
      params[i] = load(*at<S>(pick(f.weights, p.d).params, (p.m * Cell::kParams + i) * H + unit));
    load_saved<Cell>(f, at<S>(f.primal, p.by_direction(f) * f.saved_width + unit), saved, states);
    if (Cell::kReadsH || f.zones_out) state[0] = cut ? T(0) : load(*at<S>(a.h, p.state * f.output_size + unit));
    FUSED_RNN_UNROLL
    for (int s = 1; s < Cell::kStates; ++s) state[s] = cut ? T(0) : *at<T>(a.c, further<Cell>(f, p.state, s, unit));
    Cell::tangent(saved, states, params, x, r, state, kept);
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) dual_saved[k] = {saved[k], kept[k]};
    FUSED_RNN_UNROLL
    for (int s = !Cell::kReadsH; s < Cell::kStates; ++s) dual_state[s] = {states[s], state[s]};
    Cell::advance(dual_saved, dual_state, dual_next);
    FUSED_RNN_UNROLL
    for (int s = 0; s < Cell::kStates; ++s) next[s] = dual_next[s].tangent;
    keep_former<Cell>(f, p, unit, state, next);
    leave<Cell, S>(f, p, a, unit, cut, kept, state, next);
  });
}

// `kept`: the cell's kSaved.
template <class S>
__global__ void forward_projection(const Forward f, const Step step, const ForwardArrays a, int64_t kept) {
  for_each(f.output_size, step.rows, problems(f), [&](int64_t unit, int64_t b, int64_t problem) {
    const Place p(f, step, problem, b);
    if (!p.exists) return;
    if (!p.active) return clear_h<S>(f, p, kept, unit);
    auto projected = *at<Arithmetic<S>>(a.projected, p.state * f.output_size + unit);
    if (f.tangent_h) projected += load(*at<S>(f.tangent_h, p.by_row(f) * f.output_size + unit));
    store_h<S>(f, p, a, kept, unit, p.is_cut(f, step, b), projected);
  });
}

}  // namespace
}  // namespace fused_rnn::cuda
