// State shared by the phases of the backward pass, and the constants of a run.
#pragma once
#include "core/dispatch.h"
#include "core/saved_row.h"
#include "cpu/gemm/amx.h"
#include "cpu/passes/backward/rounds.h"
#include "cpu/passes/run.h"
#include "cpu/passes/workspace.h"
#include "cpu/schedule/team.h"

namespace fused_rnn::cpu {
namespace {

// The first part of the workspace, for all problems (Q).
template <class S>
struct BackwardState {
  using T = Arithmetic<S>;
  using E = Element<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  E *ih, *hh, *hr;  // [Q] weights in panels
  T* params;
  // Of the steps of a round and the one before it: step s of the loop is in slot s % slots.
  E *gates_x, *gates_r;  // [Q, slots, B, G*H] gradients of x and r; one array when they are equal
  E *outputs, *wide_h;   // with a projection: [Q, slots, B, P] dL/dh, and [Q, slots, B, H] h before it
  T *dh, *dc;            // [Q, B, H] and [Q, B, kStates - 1, H] carried from step to step: h's direct term, if any, c
  T* row_params;         // [Q, B, kParams, H] gradients of the per-unit parameters
  T* row_norms;          // [Q, B, NormSums::count, H] with layer norm: of gains and biases
  // With layer norm, of this step: [Q, B, G, H] dL/dx and dL/dr, one array when they are equal; if c is normalised,
  // [Q, B, H] dL/dh, dL/d(normed c) and tanh of that.
  T *normed_x, *normed_r, *normed_h, *to_c, *tanh_c;
  T* norms;             // [Q, kStates, T, B, panels] sums of squares over the units of a panel
  E* zeros;             // gate gradients of a row that propagates none
  T* zero_sums;         // their products
  Team::Member* teams;  // [Q * runs, members]
  CellTraits cell;
  NormSums norm;
  int64_t slots, gate_stride, output_stride, wide_stride, unit_stride, norm_panels;

  static Plain<E> input_weights(const Backward& g) { return {traits_of(g.cell).gates * g.hidden, g.input_size}; }
  static Plain<E> hidden_weights(const Backward& g) { return {traits_of(g.cell).gates * g.hidden, g.output_size}; }
  static Plain<E> projection(const Backward& g) { return {g.output_size, g.hidden}; }

  // A single step uses each weight once, so it packs them on the fly.
  static bool reads_weights_once(const Backward& g) { return !kTiles<E> && g.steps == 1; }

  // One problem's W_ih or W_hh as a right operand.
  RightOperand<E> right(const Backward& g, const Plain<E>& matrix, const E* packed, const void* Weights::* weights,
                        int64_t problem) const {
    if (!reads_weights_once(g)) return RightOperand<E>::of_packed(packed + problem * matrix.size());
    const int64_t m = problem / g.directions;
    const void* raw = g.weights[problem % g.directions].*weights;
    auto right = RightOperand<E>::of_rows(at<S>(raw, m * matrix.depth * matrix.columns));
    // By the rows of the batch, not of a thread: the order of a sum must not depend on the number of threads.
    if (g.batch > RightOperand<E>::kMostStreamed) right.streamed = nullptr;
    return right;
  }

  BackwardState(const Backward& g, const Plan& plan, Carver& carve) {
    const int64_t Q = problems(g);
    cell = traits_of(g.cell);
    norm = norm_sums(g, cell);
    slots = steps_of_round(g) + 1;
    gate_stride = row_stride<E>(cell.gates * g.hidden);
    output_stride = row_stride<E>(g.output_size);
    wide_stride = row_stride<E>(g.hidden);
    unit_stride = row_stride<T>(g.hidden);
    norm_panels = maximum(hidden_weights(g).panels(), projection(g).panels());
    const bool packs = !reads_weights_once(g);
    ih = carve.take<E>(g.grad_input && packs ? Q * input_weights(g).size() : 0);
    hh = carve.take<E>(cell.recurrent && packs ? Q * hidden_weights(g).size() : 0);
    hr = carve.take<E>(projected(g) ? Q * projection(g).size() : 0);
    params = carve.take<T>(Q * cell.params * unit_stride);
    gates_x = carve.take<E>(Q * slots * g.batch * gate_stride);
    gates_r = cell.one_gate_gradient && !normalizes(g) ? gates_x : carve.take<E>(Q * slots * g.batch * gate_stride);
    outputs = carve.take<E>(projected(g) ? Q * slots * g.batch * output_stride : 0);
    wide_h = carve.take<E>(projected(g) ? Q * slots * g.batch * wide_stride : 0);
    dh = carve.take<T>(!cell.reads_h && !g.zones_out ? 0 : Q * g.batch * unit_stride);
    dc = carve.take<T>(Q * g.batch * (cell.states - 1) * unit_stride);
    row_params = carve.take<T>(Q * g.batch * cell.params * unit_stride);
    const int64_t normed = normalizes(g) ? Q * g.batch * cell.gates * unit_stride : 0;
    normed_x = carve.take<T>(normed);
    normed_r = cell.one_gate_gradient ? normed_x : carve.take<T>(normed);
    for (T** of_c : {&normed_h, &to_c, &tanh_c}) *of_c = carve.take<T>(normalizes_c(g) ? Q * g.batch * unit_stride : 0);
    row_norms = carve.take<T>(Q * g.batch * norm.count * unit_stride);
    norms = carve.take<T>(g.grad_norms ? Q * cell.states * g.steps * g.batch * norm_panels : 0);
    zeros = carve.take<E>(maximum(gate_stride, output_stride));
    zero_sums = carve.take<T>(kMostVectors * kLanes);
    teams = carve.take<Team::Member>(count_loops(g, plan));
  }

  // Row b's sums for the gradients of the norms.
  T* norms_of(const Backward& g, int64_t problem, int64_t b, int64_t k) const {
    return row_norms + ((problem * g.batch + b) * norm.count + k) * unit_stride;
  }
  // The first row of step `step` in `gates_x`, `gates_r`, `outputs` and `wide_h`.
  int64_t first_row(const Backward& g, int64_t problem, int64_t step) const {
    return (problem * slots + step % slots) * g.batch;
  }
  T* norm_at(const Backward& g, int64_t problem, int64_t state, int64_t t, int64_t b, int64_t panel) const {
    return norms + (((problem * cell.states + state) * g.steps + t) * g.batch + b) * norm_panels + panel;
  }
};

// What stays the same from step to step.
template <class S>
struct BackwardRun {
  using T = Arithmetic<S>;
  using State = BackwardState<S>;

  const Backward& g;
  const Plan& plan;
  State state;
  Run run;
  Team team;

  BackwardRun(const Backward& g, const Plan& plan, void* buffer, int64_t number)
      : g(g),
        plan(plan),
        state(part_at<State>(buffer, 0, g, plan)),
        run(g, plan, number),
        team(state.teams + number * plan.unit_chunks, plan.unit_chunks) {}

  // Offset of row b in an array [Q, B, width], in an array [M, N, D, width], and in `saved`.
  int64_t by_problem(int64_t b, int64_t width) const { return (run.problem * g.batch + b) * width; }
  int64_t by_row(int64_t t, int64_t b, int64_t width) const {
    return ((run.m * g.rows + row_of(g, t, b)) * g.directions + run.d) * width;
  }
  int64_t saved_at(int64_t t, int64_t b) const {
    return (run.problem * saved_rows(g) + saved_row(g, run.d, t, b)) * g.saved_width;
  }
};

// A step of the loop; the previous one is later in time, or earlier in the reverse direction. Rows active in the
// previous step but not in this one have reached their initial states. The last step is followed by one without rows.
struct BackwardStep {
  int64_t number, t, rows, slot;  // slot: BackwardState::first_row
  int64_t previous_t, previous_rows, previous_slot;
};

}  // namespace
}  // namespace fused_rnn::cpu
