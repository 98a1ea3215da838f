// The epilogue of a step's products: the cell for a row and the units of a panel, and its results.
#pragma once
#include "cells/dual.h"
#include "cpu/passes/forward/ahead.h"
#include "cpu/passes/saved.h"
#include "cpu/passes/zoneout.h"

namespace fused_rnn::cpu {
namespace {

// The rows of a run in one step, whatever the cell: what enters it, and where its results go.
template <class Shape, class S>
class ForwardRows {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using Row = ForwardRow<Shape, S>;
  static constexpr int64_t kLanes = V::kLanes;
  // Whether storing h as S loses bits that E keeps. (Storing as E rounds to S as well if they have the same size.)
  static constexpr bool kRoundsWhenStored = sizeof(S) < sizeof(T) && sizeof(S) != sizeof(E);

 public:
  ForwardRows(const ForwardRun<Shape, S>& run, const ForwardStep& step, int64_t share)
      : run_(run), rows_(run.state.input_sums[share].addresses) {
    for (int64_t i = 0; i < step.rows; ++i) rows_[i] = Row(run, step.number, step.t, i);
  }

  const GatePanels<Shape, T>& panels() const { return run_.panels; }

  // With a projection: h of the columns of one panel of W_hr. sums: W_hr times the cell's h.
  template <class Sums>
  void projection(const Plain<Weight<S>>& hr, int64_t panel, int64_t i, const Sums& sums) const {
    const Forward& f = run_.f;
    const Row& row = rows_[i];
    const S* added = at<S>(f.tangent_h, row.by_row * f.output_size);
    for (int v = 0; v < hr.panel_vectors(panel); ++v) {
      const int64_t first = hr.first_column(panel) + v * kLanes;
      const Units units = {first, minimum(kLanes, f.output_size - first)};
      V next = load_vector(sums + v * kLanes);
      if (added) next = next + load_vector(added + first, units.count);
      store_h(row, units, next);
      if (row.saved) store_vector(row.saved + entering_h(f, Shape::kSaved) + first, load_at(row.h, first), units.count);
    }
  }

  // With layer norm: W_hh h, until it can be normalised.
  void keep_recurrent(int64_t panel, int64_t i, const T* sums) const {
    store_row(run_.state.recurrent_of(panel, i), sums, run_.panels.width(panel));
  }

  // Prefetches what ForwardCells will write for the backward pass and the output, which is not cached yet.
  void fetch(int64_t panel, int64_t i) const {
    const Forward& f = run_.f;
    const int64_t first = run_.panels.first_unit(panel);
    const Units units = {first, minimum(run_.panels.kUnits * kLanes, f.hidden - first)};
    const Row& row = rows_[i];
    if (!Shape::projects(f)) fetch_row_to_write(row.output + units.first, units.count);
    if (!row.saved) return;
    const S* primal = at<S>(f.primal, row.by_direction * f.saved_width);
    if (primal) fetch_saved(Shape::kTraits, f, primal, units, Shape::kReadsH, &fetch_row<S>);
    fetch_saved(Shape::kTraits, f, row.saved, units, !Shape::projects(f), &fetch_row_to_write<S>);
    if (normalizes(f)) fetch_normalised(Shape::kTraits, f, row.saved, units, &fetch_row_to_write<S>);
  }

 protected:
  T* state_of(const Row& row, int k) const { return row.c + (k - 1) * run_.state.c_stride; }

  FUSED_RNN_INLINE void load_states(const Row& row, Units units, V* state) const {
    state[0] = Shape::kReadsH || run_.f.zones_out ? load_at(row.h, units.first) : V(T(0));
    for (int k = 1; k < Shape::kStates; ++k) state[k] = load_vector(state_of(row, k) + units.first);
  }

  // Zoneout, if any, of the cell's results; h comes later if c is normalised.
  FUSED_RNN_INLINE void keep_former(const Row& row, Units units, const V* state, V* next) const {
    const Forward& f = run_.f;
    if (!f.zones_out) return;
    const int64_t place = row.by_row * Shape::kStates * f.hidden;
    for (int k = normalizes_c(f); k < Shape::kStates; ++k)
      next[k] = zone_out(f, kept_share<T>(f, place, k, units), state[k], next[k]);
  }

  // What h is computed from, once c is normalised.
  void keep_for_norm(int64_t i, Units units, V c, V gate) const {
    const auto& state = run_.state;
    store_vector(state.new_c + i * state.c_stride + units.first, c);
    store_vector(state.gate + i * state.c_stride + units.first, gate);
  }

  // For the backward pass, the next step and the user.
  FUSED_RNN_INLINE void store_results(const Row& row, Units units, const V* keep, const V* state, const V* next) const {
    const Forward& f = run_.f;
    if (S* saved = row.saved) {
      store_kept<Shape>(f, saved, units, keep);
      for (int k = 1; k < Shape::kStates; ++k)
        store_vector(saved + entering_state(f, Shape::kSaved, k) + units.first, state[k], units.count);
      if (!Shape::projects(f))
        store_vector(saved + entering_h(f, Shape::kSaved) + units.first, load_at(row.h, units.first), units.count);
    }
    for (int k = 1; k < Shape::kStates; ++k) {
      store_vector(state_of(row, k) + units.first, next[k]);
      if (f.cells) store_vector(row.cells + (k - 1) * f.hidden + units.first, next[k], units.count);
    }
    if (Shape::projects(f))
      store_at(row.wide_h, units.first, next[0], units.count);
    else if (!normalizes_c(f))
      store_h(row, units, next[0]);
  }

  // The next step reads h as stored, so that splitting a sequence and carrying the state over does not change results.
  FUSED_RNN_INLINE static void store_h(const Row& row, Units units, V h) {
    store_vector(row.output + units.first, h, units.count);
    const V as_stored = kRoundsWhenStored ? load_vector(row.output + units.first, units.count) : h;
    // Products that read past the last unit need the zero padding to be kept.
    store_at(row.h_next, units.first, as_stored, kDepthStep<E> > 1 ? units.count : kLanes);
  }

  const ForwardRun<Shape, S>& run_;
  Row* const rows_;
};

// The epilogues: for row i and the units of a panel. Pointers to them let the loop serve all cells of one shape.
template <class Shape, class S>
struct ForwardEpilogues {
  using T = Arithmetic<S>;
  using Rows = ForwardRows<Shape, S>;
  using Inputs = typename LookAhead<Shape, S>::OfStep;

  using Epilogue = void (*)(const Rows&, int64_t panel, int64_t i, const Inputs& x, PanelSums<S> r);

  Epilogue cell, tangent;                                                      // tangent: not of quantized weights
  void (*cell_of_both)(const Rows&, int64_t panel, int64_t i, const T* sums);  // if ForwardChoices::kMayFuse
  const double* initial;                                                       // states
};

template <class Cell, class S>
class ForwardCells : ForwardRows<ShapeOf<Cell>, S> {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  using Shape = ShapeOf<Cell>;
  using Rows = ForwardRows<Shape, S>;
  using Row = ForwardRow<Shape, S>;
  using Choices = ForwardChoices<Shape, S>;
  using Epilogues = ForwardEpilogues<Shape, S>;
  using Inputs = typename Epilogues::Inputs;
  using Panels = GatePanels<Shape, T>;
  using Rows::run_, Rows::rows_;
  static constexpr int64_t kLanes = V::kLanes, kWidth = Panels::kWidth;
  static constexpr int kOwnSums = Choices::kOwnSums;

  explicit ForwardCells(const Rows& rows) : Rows(rows) {}

  static void cell_of(const Rows& rows, int64_t panel, int64_t i, const Inputs& x, PanelSums<S> r) {
    rows.panels().with_units(panel, [&](auto known) {
      constexpr int kUnits = decltype(known)::value;
      ForwardCells(rows).template cell<kUnits, false>(panel, i, x.template row<kUnits>(panel, i), r);
    });
  }
  static void cell_of_both(const Rows& rows, int64_t panel, int64_t i, const T* sums) {
    if constexpr (Choices::kMayFuse)
      rows.panels().with_units(panel, [&](auto known) {
        ForwardCells(rows).template cell<decltype(known)::value, true>(panel, i, sums, nullptr);
      });
  }
  static void tangent_of(const Rows& rows, int64_t panel, int64_t i, const Inputs&, PanelSums<S> r) {
    if constexpr (!kQuantized<S>)
      rows.panels().with_units(
          panel, [&](auto known) { ForwardCells(rows).template tangent<decltype(known)::value>(panel, i, r); });
  }

 public:
  static constexpr Epilogues kEpilogues = {&cell_of, &tangent_of, &cell_of_both, Cell::kInitial};

 private:
  // The cell for row i and the units of one panel. x, r: [vectors of the panel, L], the products W_ih x and W_hh h.
  // With kBoth x has their sum, followed by W_hh h of the gates that need it separately. Sums: numbers or ScaledSums.
  template <int kUnits, bool kBoth, class Sums>
  FUSED_RNN_INLINE void cell(int64_t panel, int64_t i, const T* x, const Sums& r) const {
    const Panels panels = run_.panels;
    const T* bias_ih = run_.packed.bias_ih + panel * kWidth;
    const T* bias_hh = run_.packed.bias_hh + panel * kWidth;
    const T* params = run_.packed.params;
    const Row& row = rows_[i];
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
      const Units units = panels.vector_of_units(panel, u);
      V xs[Cell::kGates], rs[Cell::kGates], ps[Cell::kParams + 1], state[Cell::kStates], next[Cell::kStates];
      V keep[Cell::kSaved];
      for (int g = 0; g < Cell::kGates; ++g) {
        const int64_t j = (g * kUnits + u) * kLanes;
        xs[g] = load_vector(x + j) + load_vector(bias_ih + j);
        if constexpr (Cell::kRecurrent && !kBoth) rs[g] = load_vector(r + j);
        if (kBoth) rs[g] = g < Cell::kSharedGates ? V(T(0)) : load_vector(x + j + kOwnSums * kUnits * kLanes);
        if (Cell::kRecurrent && !kOneGateGradient<Cell>) rs[g] = rs[g] + load_vector(bias_hh + j);
      }
      for (int p = 0; p < Cell::kParams; ++p) ps[p] = load_vector(params + p * panels.padded_units() + units.first);
      this->load_states(row, units, state);
      Cell::forward(xs, rs, state, ps, next, keep);
      if constexpr (requires { Cell::kOutputGate; })
        if (normalizes_c(run_.f)) this->keep_for_norm(i, units, next[1], keep[Cell::kOutputGate]);
      this->keep_former(row, units, state, next);
      this->store_results(row, units, keep, state, next);
    }
  }

  // In place of `cell`: the tangents of its results, for tangents of x, r and the states (Forward::primal).
  template <int kUnits>
  void tangent(int64_t panel, int64_t i, const T* r) const {
    const Forward& f = run_.f;
    const Panels panels = run_.panels;
    const Row& row = rows_[i];
    const S* primal = at<S>(f.primal, row.by_direction * f.saved_width);
    for (int u = 0; u < kUnits; ++u) {
      const Units units = panels.vector_of_units(panel, u);
      V xs[Cell::kGates], rs[Cell::kGates], ps[Cell::kParams + 1], saved[Cell::kSaved], states[Cell::kStates];
      V keep[Cell::kSaved], dstates[Cell::kStates], dnext[Cell::kStates];
      for (int g = 0; g < Cell::kGates; ++g) {
        const auto given = [&](const void* tangents) {
          const int64_t j = (row.by_row * Cell::kGates + g) * f.hidden + units.first;
          return tangents ? load_vector(at<S>(tangents, j), units.count) : V(T(0));
        };
        xs[g] = given(f.tangent_x);
        if (Cell::kRecurrent) rs[g] = load_vector(r + (g * kUnits + u) * kLanes) + given(f.tangent_r);
      }
      for (int p = 0; p < Cell::kParams; ++p)
        ps[p] = load_vector(run_.packed.params + p * panels.padded_units() + units.first);
      load_saved<Cell>(f, primal, units, saved, states);
      this->load_states(row, units, dstates);
      Cell::tangent(saved, states, ps, xs, rs, dstates, keep);
      Dual<V> dual_saved[Cell::kSaved], dual_states[Cell::kStates], dual_next[Cell::kStates];
      for (int k = 0; k < Cell::kSaved; ++k) dual_saved[k] = {saved[k], keep[k]};
      for (int s = !Cell::kReadsH; s < Cell::kStates; ++s) dual_states[s] = {states[s], dstates[s]};
      Cell::advance(dual_saved, dual_states, dual_next);
      for (int s = 0; s < Cell::kStates; ++s) dnext[s] = dual_next[s].tangent;
      this->keep_former(row, units, dstates, dnext);
      this->store_results(row, units, keep, dstates, dnext);
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
