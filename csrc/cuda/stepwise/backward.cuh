// One step of the backward pass; one thread for each unit, row and problem.
#pragma once
#include "cells/dual.h"
#include "cuda/stepwise/zoneout.cuh"

namespace fused_rnn::cuda {
namespace {

// dL/dh that reaches the state from the steps after this one.
template <class S>
FUSED_RNN_DEVICE Arithmetic<S> incoming_dh(const Backward& g, const BackwardArrays& a, int64_t state, int64_t b,
                                           int64_t unit) {
  using T = Arithmetic<S>;
  const int64_t i = state * g.output_size + unit;
  const T direct = *at<T>(a.dh, i);
  if (b >= a.through_gates_rows) return direct;
  const T through_gates = *at<T>(a.through_gates, i);
  return direct + (g.h_factor ? through_gates * load(*at<S>(g.h_factor, i)) : through_gates);
}

// Backward::added_h.
template <class S>
FUSED_RNN_DEVICE Arithmetic<S> added_dh(const Backward& g, const Place& p, const Step& step, int64_t b, int64_t unit) {
  if (!g.added_h || p.is_cut(g, step, b)) return Arithmetic<S>(0);
  return load(*at<S>(g.added_h, p.by_row(g) * g.output_size + unit));
}

// h as W_hh read it in this step, with recurrent dropout. `kept`: the cell's kSaved.
template <class S>
FUSED_RNN_DEVICE void store_masked_h(const Backward& g, const Place& p, const BackwardArrays& a, int64_t kept,
                                     int64_t unit) {
  const S* entering = at<S>(g.saved, p.by_direction(g) * g.saved_width + entering_h(g, kept) + unit);
  const S* factor = at<S>(g.h_factor, p.state * g.output_size + unit);
  store(*at<S>(a.masked_h, p.by_row(g) * g.output_size + unit), load(*entering) * load(*factor));
}

// The whole gradient of h after this step. If the row is inactive, dh keeps the gradient for a later step of the loop.
template <class S>
FUSED_RNN_DEVICE Arithmetic<S> whole_dh(const Backward& g, const Place& p, const Step& step, const BackwardArrays& a,
                                        int64_t b, int64_t unit) {
  using T = Arithmetic<S>;
  const int64_t i = p.state * g.output_size + unit;
  T dh = incoming_dh<S>(g, a, p.state, b, unit);
  *at<T>(a.dh, i) = p.active ? added_dh<S>(g, p, step, b, unit) : dh;
  if (!p.active) dh = T(0);
  if (p.active && g.grad_output) dh += load(*at<S>(g.grad_output, p.by_row(g) * g.output_size + unit));
  dh = clipped(g, dh);
  if (a.whole[0]) *at<T>(a.whole[0], i) = dh;
  return dh;
}

// `kept`: the cell's kSaved.
template <class S>
__global__ void backward_projection(const Backward g, const Step step, const BackwardArrays a, int64_t kept) {
  for_each(g.output_size, step.rows, problems(g), [&](int64_t unit, int64_t b, int64_t problem) {
    const Place p(g, step, problem, b);
    const auto dh = whole_dh<S>(g, p, step, a, b, unit);
    store(*at<S>(a.step_outputs, p.state * g.output_size + unit), dh);
    if (!p.exists) return;
    store(*at<S>(a.outputs, p.by_row(g) * g.output_size + unit), dh);
    if (a.masked_h) store_masked_h<S>(g, p, a, kept, unit);
  });
}

// Zero gradients, for an inactive row.
template <class Cell, class S>
FUSED_RNN_DEVICE void clear_unit(const Backward& g, const Place& p, const BackwardArrays& a, int64_t unit) {
  using T = Arithmetic<S>;
  const int64_t H = g.hidden, GH = Cell::kGates * H;
  for (int j = 0; j < Cell::kGates; ++j) {
    if (Cell::kRecurrent) store(*at<S>(a.step_gates, p.state * GH + j * H + unit), T(0));
    if (!p.exists) continue;
    store(*at<S>(a.gates_x, p.by_row(g) * GH + j * H + unit), T(0));
    store(*at<S>(a.gates_r, p.by_row(g) * GH + j * H + unit), T(0));
  }
  if (p.exists && is_projected<Cell>(g)) store(*at<S>(a.wide_h, p.by_row(g) * H + unit), T(0));
  for (int s = 1; a.whole[1] && s < Cell::kStates; ++s) *at<T>(a.whole[1], further<Cell>(g, p.state, s, unit)) = T(0);
}

// The tangent of Cell::backward, along those of the saved values and of the states' gradients. dnext: tangents, in and
// out.
template <class Cell, class S, class T>
FUSED_RNN_DEVICE void tangent_backward(const Backward& g, const Place& p, int64_t unit, const T* kept, const T* state,
                                       const T* params, T* dnext, T* dx, T* dr, T* dstate, T* dparams) {
  const int64_t H = g.hidden;
  T kept_tangents[Cell::kSaved + 1], state_tangents[Cell::kStates];
  Dual<T> keeps[Cell::kSaved + 1], states[Cell::kStates], nexts[Cell::kStates], constants[Cell::kParams + 1];
  Dual<T> dnexts[Cell::kStates], dxs[Cell::kGates], drs[Cell::kGates], dstates[Cell::kStates],
      to_params[Cell::kParams + 1];
  const S* tangents = at<S>(g.saved_tangent, p.by_direction(g) * g.saved_width + unit);
  load_saved<Cell>(g, tangents, kept_tangents, state_tangents);
  FUSED_RNN_UNROLL
  for (int k = 0; k < Cell::kSaved; ++k) keeps[k] = {kept[k], kept_tangents[k]};
  FUSED_RNN_UNROLL
  for (int s = !Cell::kReadsH; s < Cell::kStates; ++s) states[s] = {state[s], state_tangents[s]};
  FUSED_RNN_UNROLL
  for (int i = 0; i < Cell::kParams; ++i) constants[i] = {params[i], T(0)};
  if (Cell::kProjectable && g.added_wide) dnext[0] += load(*at<S>(g.added_wide, p.by_row(g) * H + unit));
  const S* traced = at<S>(g.traced_states, p.by_row(g) * Cell::kStates * H + unit);
  FUSED_RNN_UNROLL
  for (int s = 0; s < Cell::kStates; ++s) dnexts[s] = {load(traced[s * H]), dnext[s]};
  Cell::advance(keeps, states, nexts);
  Cell::backward(keeps, states, nexts, constants, dnexts, dxs, drs, dstates, to_params);
  if (Cell::kProjectable && g.trace_wide) store(*at<S>(g.trace_wide, p.by_row(g) * H + unit), nexts[0].tangent);
  FUSED_RNN_UNROLL
  for (int j = 0; j < Cell::kGates; ++j) {
    dx[j] = dxs[j].tangent;
    if (!kOneGateGradient<Cell>) dr[j] = drs[j].tangent;
  }
  FUSED_RNN_UNROLL
  for (int s = 0; s < Cell::kStates; ++s) {
    dnext[s] = dnexts[s].tangent;
    dstate[s] = dstates[s].tangent;
  }
  FUSED_RNN_UNROLL
  for (int i = 0; i < Cell::kParams; ++i) dparams[i] = to_params[i].tangent;
}

// Cell::backward, or what it is where c is normalised (norm.cuh).
template <class Cell, class T>
FUSED_RNN_DEVICE void backward_of(const Backward& g, const BackwardArrays& a, int64_t state_unit, const T* kept,
                                  const T* state, const T* next, const T* params, T* dnext, T* dx, T* dr, T* dstate,
                                  T* dparams) {
  if constexpr (requires { Cell::kOutputGate; })
    if (normalizes_c(g)) {
      dnext[1] += *at<T>(a.to_c, state_unit);
      return Cell::backward_of(kept, state, dnext[0] * *at<T>(a.tanh_c, state_unit), dnext[1], dx, dr, dstate);
    }
  Cell::backward(kept, state, next, params, dnext, dx, dr, dstate, dparams);
}

template <class Cell, class S, bool tangent>
__global__ void backward_step(const Backward g, const Step step, const BackwardArrays a) {
  using T = Arithmetic<S>;
  constexpr int G = Cell::kGates;
  for_each(g.hidden, step.rows, problems(g), [&](int64_t unit, int64_t b, int64_t problem) {
    const Place p(g, step, problem, b);
    const int64_t H = g.hidden, GH = G * H, state_unit = p.state * H + unit;
    const T dh = is_projected<Cell>(g) ? *at<T>(a.wide, state_unit)
                 : normalizes_c(g)     ? *at<T>(a.normed_h, state_unit)
                                       : whole_dh<S>(g, p, step, a, b, unit);
    if (a.masked_h && p.exists && !is_projected<Cell>(g)) store_masked_h<S>(g, p, a, Cell::kSaved, unit);
    if (!p.active) return clear_unit<Cell, S>(g, p, a, unit);
    const bool cut = p.is_cut(g, step, b);
    const S* saved = at<S>(g.saved, p.by_direction(g) * g.saved_width + unit);
    T kept[Cell::kSaved + 1], params[Cell::kParams + 1], state[Cell::kStates], next[Cell::kStates],
        dnext[Cell::kStates];
    T dx[G], dr[G], dstate[Cell::kStates], dparams[Cell::kParams + 1], past[Cell::kStates];
    load_saved<Cell>(g, saved, kept, state);
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i)
      params[i] = load(*at<S>(pick(g.weights, p.d).params, (p.m * Cell::kParams + i) * H + unit));
    dnext[0] = dh;
    FUSED_RNN_UNROLL
    for (int s = 1; s < Cell::kStates; ++s) {
      dnext[s] = *at<T>(a.dc, further<Cell>(g, p.state, s, unit));
      if (g.grad_cells) dnext[s] += load(*at<S>(g.grad_cells, further<Cell>(g, p.by_row(g), s, unit)));
    }
    Cell::advance(kept, state, next);
    if (g.zones_out) {
      FUSED_RNN_UNROLL
      for (int s = 1; a.whole[1] && s < Cell::kStates; ++s)
        *at<T>(a.whole[1], further<Cell>(g, p.state, s, unit)) = dnext[s];
      split<Cell>(g, p, unit, dnext, past);
    }
    if (g.trace_states) {
      S* trace = at<S>(g.trace_states, p.by_row(g) * Cell::kStates * H + unit);
      FUSED_RNN_UNROLL
      for (int s = 0; s < Cell::kStates; ++s) store(trace[s * H], dnext[s]);
    }
    if (!tangent && Cell::kProjectable && g.trace_wide) store(*at<S>(g.trace_wide, p.by_row(g) * H + unit), next[0]);
    if constexpr (tangent)
      tangent_backward<Cell, S>(g, p, unit, kept, state, params, dnext, dx, dr, dstate, dparams);
    else
      backward_of<Cell>(g, a, state_unit, kept, state, next, params, dnext, dx, dr, dstate, dparams);
    FUSED_RNN_UNROLL
    for (int j = 0; j < G; ++j) {
      if (normalizes(g)) {
        *at<T>(a.normed_x, p.state * GH + j * H + unit) = dx[j];
        if (Cell::kRecurrent && !kOneGateGradient<Cell>) *at<T>(a.normed_r, p.state * GH + j * H + unit) = dr[j];
        continue;
      }
      store(*at<S>(a.gates_x, p.by_row(g) * GH + j * H + unit), dx[j]);
      if (!Cell::kRecurrent) continue;
      const T dr_j = kOneGateGradient<Cell> ? dx[j] : dr[j];
      if (!kOneGateGradient<Cell>) store(*at<S>(a.gates_r, p.by_row(g) * GH + j * H + unit), dr_j);
      store(*at<S>(a.step_gates, p.state * GH + j * H + unit), cut ? T(0) : dr_j);
    }
    FUSED_RNN_UNROLL
    for (int s = 0; g.zones_out && s < Cell::kStates; ++s)
      dstate[s] = s > 0 || Cell::kReadsH ? dstate[s] + past[s] : past[s];
    if (Cell::kReadsH || g.zones_out)
      *at<T>(a.dh, state_unit) = (cut ? T(0) : dstate[0]) + added_dh<S>(g, p, step, b, unit);
    FUSED_RNN_UNROLL
    for (int s = 1; s < Cell::kStates; ++s) {
      const int64_t i = further<Cell>(g, p.state, s, unit);
      *at<T>(a.dc, i) = cut ? T(0) : dstate[s];
      if (a.whole[1] && !g.zones_out) *at<T>(a.whole[1], i) = dnext[s];
    }
    if (is_projected<Cell>(g)) store(*at<S>(a.wide_h, p.by_row(g) * H + unit), next[0]);
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i) *at<T>(a.params, (p.state * Cell::kParams + i) * H + unit) += dparams[i];
  });
}

// `further`: W.
template <class S>
__global__ void backward_end(const Backward g, const BackwardArrays a, int64_t further) {
  using T = Arithmetic<S>;
  const int64_t P = g.output_size;
  for_each(further > P ? further : P, g.batch, problems(g), [&](int64_t unit, int64_t b, int64_t problem) {
    const int64_t state = problem * g.batch + b, i = state * further + unit;
    if (unit < P) store(*at<S>(g.grad_h0, state * P + unit), incoming_dh<S>(g, a, state, b, unit));
    if (g.grad_c0 && unit < further) store(*at<S>(g.grad_c0, i), *at<T>(a.dc, i));
  });
}

FUSED_RNN_DEVICE float square_root(float x) { return sqrtf(x); }
FUSED_RNN_DEVICE double square_root(double x) { return sqrt(x); }

// One block for each state and problem: a tree reduction, so that the order is fixed.
constexpr unsigned kNormThreads = 256;

template <class T>
__global__ void norms(const Backward g, const Step step, const BackwardArrays a, int64_t states) {
  const int64_t problem = blockIdx.x, state = blockIdx.y, width = state == 0 ? g.output_size : g.hidden;
  const int64_t row_width = state == 0 ? width : (states - 1) * width, first = state == 0 ? 0 : (state - 1) * width;
  const T* whole = at<T>(state == 0 ? a.whole[0] : a.whole[1], problem * g.batch * row_width + first);
  T* const sums = reinterpret_cast<T*>(shared_memory());
  T sum = 0;
  for (int64_t i = threadIdx.x; i < step.rows * width; i += kNormThreads) {
    const T value = whole[i / width * row_width + i % width];
    sum += value * value;
  }
  sums[threadIdx.x] = sum;
  for (unsigned others = kNormThreads / 2; others > 0; others /= 2) {
    __syncthreads();
    if (threadIdx.x < others) sums[threadIdx.x] += sums[threadIdx.x + others];
  }
  const int64_t time = pick(step.time, problem % g.directions);
  if (threadIdx.x == 0) *at<T>(g.grad_norms, (problem * states + state) * g.steps + time) = square_root(sums[0]);
}

}  // namespace
}  // namespace fused_rnn::cuda
