// The epilogue of a backward step's products: dL/dh for a row and the columns of a panel, then the cell.
#pragma once
#include "cells/dual.h"
#include "cpu/passes/backward/of_step.h"
#include "cpu/passes/moments.h"
#include "cpu/passes/zoneout.h"

namespace fused_rnn::cpu {
namespace {

template <class Cell, class S>
class BackwardCells : BackwardRows<S> {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using State = BackwardState<S>;
  using Rows = BackwardRows<S>;
  using Row = typename Rows::Row;
  using Rows::r_, Rows::step_;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr bool kHasOutputGate = requires { Cell::kOutputGate; };

  explicit BackwardCells(const Rows& rows) : Rows(rows) {}

 public:
  static constexpr BackwardEpilogues<S> kEpilogues = {
      [](const Rows& rows, const Plain<E>& hh, int64_t panel, int64_t i, const T* sums) {
        BackwardCells(rows).hidden(hh, panel, i, sums);
      },
      [](const Rows& rows, const Plain<E>& hr, int64_t panel, int64_t i, const T* sums) {
        if constexpr (Cell::kProjectable) BackwardCells(rows).before_projection(hr, panel, i, sums);
      },
      [](const Rows& rows, const Plain<E>& hh, Range panels, int64_t i) {
        if constexpr (kHasOutputGate) BackwardCells(rows).normed(hh, panels, i);
      }};

 private:
  // dL/dh of row i: sums = W_hh^T dgates, plus the direct terms of this step.
  void hidden(const Plain<E>& hh, int64_t panel, int64_t i, const T* sums) const {
    const Backward& g = r_.g;
    const int64_t P = g.output_size;
    const Row row(*this, i);
    const int vectors = hh.panel_vectors(panel);
    V norms[Cell::kStates];
    for (V& norm : norms) norm = V(T(0));
    GateGradients held[kAtOnce];
    for (int v = 0; v < vectors; ++v) {
      const int64_t first = hh.first_column(panel) + v * kLanes;
      const PanelVector units = {{first, minimum(kLanes, P - first)}, v, v + 1 == vectors};
      V dh = load_vector(sums + v * kLanes);
      if (g.h_factor) dh = dh * load_vector(at<S>(g.h_factor, r_.by_problem(row.b, P) + first), units.count);
      if (row.was_active) {
        if (carries_h() && !row.cut) dh = dh + load_vector(carried_h(row) + first);
        if (g.added_h && !row.cut)
          dh = dh + load_vector(at<S>(g.added_h, r_.by_row(step_.previous_t, row.b, P) + first), units.count);
      } else if (g.grad_h_n) {
        dh = load_vector(at<S>(g.grad_h_n, r_.by_problem(row.b, P) + first), units.count);
      }
      if (!row.active) {
        if (g.grad_h0) store_vector(at<S>(g.grad_h0, r_.by_problem(row.b, P) + first), dh, units.count);
        if (!projected(g)) store_grad_c0(row, units);
        continue;
      }
      if (g.grad_output) dh = dh + load_vector(at<S>(g.grad_output, here(row, P) + first), units.count);
      if (g.grad_clip > 0) dh = clamp(dh, T(-g.grad_clip), T(g.grad_clip));
      norms[0] = norms[0] + dh * dh;
      if (g.trace_output) store_vector(at<S>(g.trace_output, here(row, P) + first), dh, units.count);
      if (projected(g))
        store_at(r_.state.outputs + (step_.slot + row.b) * r_.state.output_stride, first, dh, units.count);
      else if (normalizes_c(g))
        keep_for_norm(row, units, dh);
      else
        cell(row, units, dh, held, norms);
    }
    if (!g.grad_norms || !row.active) return;
    *norm_at(0, row, panel) = sum_of(norms[0]);
    if (!projected(g)) store_norms(row, panel, norms);
  }

  // With a projection: the cell. sums: the gradient of h before the projection, W_hr^T dh.
  void before_projection(const Plain<E>& hr, int64_t panel, int64_t i, const T* sums) const {
    const Backward& g = r_.g;
    const Row row(*this, i);
    const int vectors = hr.panel_vectors(panel);
    V norms[Cell::kStates];
    for (V& norm : norms) norm = V(T(0));
    GateGradients held[kAtOnce];
    for (int v = 0; v < vectors; ++v) {
      const int64_t first = hr.first_column(panel) + v * kLanes;
      const PanelVector units = {{first, minimum(kLanes, g.hidden - first)}, v, v + 1 == vectors};
      if (row.active)
        cell(row, units, load_vector(sums + v * kLanes), held, norms);
      else
        store_grad_c0(row, units);
    }
    if (g.grad_norms && row.active) store_norms(row, panel, norms);
  }

  // Where c is normalised: dL/dh of these units, until the row has all of it, and what the norm's gradient needs.
  void keep_for_norm(const Row& row, Units units, V dh) const {
    if constexpr (kHasOutputGate) {
      const Backward& g = r_.g;
      const S* const saved = at<S>(g.saved, r_.saved_at(step_.t, row.b));
      const V y = load_vector(saved + normalised_c(g, r_.state.cell) + units.first, units.count);
      const V tanh_c = tanh(normed_c<S>(g.weights[r_.run.d], r_.run.m * g.hidden, units, y));
      const V gate = load_vector(saved + kept_at<Cell>(g, Cell::kOutputGate, units.first), units.count);
      V d = dh;
      if (g.zones_out) d = d - d * kept_share<T>(g, here(row, Cell::kStates * g.hidden), 0, units);
      const int64_t place = r_.by_problem(row.b, r_.state.unit_stride) + units.first;
      store_vector(r_.state.normed_h + place, dh);
      store_vector(r_.state.to_c + place, d * gate * dtanh(tanh_c));
      store_vector(r_.state.tanh_c + place, tanh_c);
    }
  }

  // Then the cell of row i. All shares compute the row's sums alike.
  void normed(const Plain<E>& hh, Range panels, int64_t i) const {
    const Backward& g = r_.g;
    const State& s = r_.state;
    const Row row(*this, i);
    const int64_t H = g.hidden, place = r_.by_problem(row.b, s.unit_stride);
    const S* const saved = at<S>(g.saved, r_.saved_at(step_.t, row.b));
    const S* const normalised = saved + normalised_c(g, s.cell);
    const S* const gain = at<S>(g.weights[r_.run.d].gain_c, r_.run.m * H);
    NormGradient<T> through_norm = {};
    through_norm.scale = load_vector(saved + norm_scales(g, s.cell) + 2, 1).v[0];
    by_fours<kLanes>(H, [&](int k, int64_t j, int64_t n) {
      through_norm.add(k, load_vector(s.to_c + place + j, n) * load_vector(gain + j, n),
                       load_vector(normalised + j, n));
    });
    through_norm.end(H);
    T* const to_gain = s.norms_of(g, r_.run.problem, row.b, s.norm.gain_c);
    T* const to_bias = s.norms_of(g, r_.run.problem, row.b, s.norm.bias_c);
    GateGradients held[kAtOnce];
    V norms[Cell::kStates];
    for (V& norm : norms) norm = V(T(0));
    const int64_t end = minimum(H, hh.first_column(panels.last));
    for (int64_t first = hh.first_column(panels.first); first < end; first += kLanes) {
      const PanelVector units = {{first, minimum(kLanes, end - first)}, 0, true};
      const V dy = load_vector(s.to_c + place + first), y = load_vector(normalised + first, units.count);
      store_vector(to_gain + first, load_vector(to_gain + first) + dy * y);
      store_vector(to_bias + first, load_vector(to_bias + first) + dy);
      const NormedC through = {load_vector(s.tanh_c + place + first),
                               through_norm(dy * load_vector(gain + first, units.count), y)};
      cell(row, units, load_vector(s.normed_h + place + first), held, norms, &through);
    }
  }

  // Of normalised units: tanh of c, normalised, and the gradient that c gets from h.
  struct NormedC {
    V tanh_c, dc;
  };

  // The units of vector v of a panel.
  struct PanelVector : Units {
    int v;
    bool is_last;
  };

  struct GateGradients {
    V x[Cell::kGates], r[Cell::kGates];
  };
  // Split floats fill cache lines when two vectors are stored at once.
  static constexpr int kAtOnce = kParts<E> > 1 ? 2 : 1;

  int64_t here(const Row& row, int64_t width) const { return r_.by_row(step_.t, row.b, width); }
  T* norm_at(int64_t s, const Row& row, int64_t panel) const {
    return r_.state.norm_at(r_.g, r_.run.problem, s, step_.t, row.b, panel);
  }
  // Of all states but h.
  void store_norms(const Row& row, int64_t panel, const V* norms) const {
    for (int s = 1; s < Cell::kStates; ++s) *norm_at(s, row, panel) = sum_of(norms[s]);
  }
  // Whether a part of dL/dh bypasses W_hh.
  bool carries_h() const { return Cell::kReadsH || r_.g.zones_out; }
  T* carried_h(const Row& row) const { return r_.state.dh + r_.by_problem(row.b, r_.state.unit_stride); }
  T* carried_c(const Row& row, int s) const {
    return r_.state.dc + (r_.by_problem(row.b, Cell::kStates - 1) + s - 1) * r_.state.unit_stride;
  }
  // Of state s >= 1 of a row, in an array [.., W].
  int64_t further(int64_t row, int s) const { return (row * (Cell::kStates - 1) + s - 1) * r_.g.hidden; }

  // dL/d of state s >= 1 of these units, from later in time.
  V incoming_dc(const Row& row, int s, Units units) const {
    const Backward& g = r_.g;
    if (row.cut) return V(T(0));
    if (row.was_active) return load_vector(carried_c(row, s) + units.first);
    if (!g.grad_c_n) return V(T(0));
    return load_vector(at<S>(g.grad_c_n, further(r_.by_problem(row.b, 1), s) + units.first), units.count);
  }
  void store_grad_c0(const Row& row, Units units) const {
    if (!r_.g.grad_c0) return;
    for (int s = 1; s < Cell::kStates; ++s)
      store_vector(at<S>(r_.g.grad_c0, further(r_.by_problem(row.b, 1), s) + units.first), incoming_dc(row, s, units),
                   units.count);
  }

  // The cell for one vector of units. Gate gradients are held back in `held` until kAtOnce vectors can be stored
  // together. Adds the squares of the full gradients of all states but h to `norms`.
  FUSED_RNN_INLINE void cell(const Row& row, const PanelVector& units, V dh, GateGradients (&held)[kAtOnce], V* norms,
                             [[maybe_unused]] const NormedC* normed = nullptr) const {
    const Backward& g = r_.g;
    const State& s = r_.state;
    V keep[Cell::kSaved], state[Cell::kStates], next[Cell::kStates], params[Cell::kParams + 1], dnext[Cell::kStates];
    V dstate[Cell::kStates], dparams[Cell::kParams + 1];
    GateGradients& gates = held[units.v % kAtOnce];
    load_saved<Cell>(g, at<S>(g.saved, r_.saved_at(step_.t, row.b)), units, keep, state);
    for (int p = 0; p < Cell::kParams; ++p)
      params[p] = load_vector(s.params + (r_.run.problem * Cell::kParams + p) * s.unit_stride + units.first);
    dnext[0] = dh;
    for (int k = 1; k < Cell::kStates; ++k) {
      dnext[k] = incoming_dc(row, k, units);
      if (g.grad_cells)
        dnext[k] = dnext[k] + load_vector(at<S>(g.grad_cells, further(here(row, 1), k) + units.first), units.count);
    }
    Cell::advance(keep, state, next);
    V whole[Cell::kStates], kept[Cell::kStates];
    split(row, units, dnext, whole, kept);
    if (g.trace_states) trace_states(row, units, dnext);
    if (g.trace_wide && !g.saved_tangent)
      store_vector(at<S>(g.trace_wide, here(row, g.hidden) + units.first), next[0], units.count);
    if (g.saved_tangent)
      tangent(row, units, {keep, state, params}, {dnext, gates.x, gates.r, dstate, dparams});
    else if (!backward_of_normed(normed, keep, state, dnext, gates, dstate))
      Cell::backward(keep, state, next, params, dnext, gates.x, gates.r, dstate, dparams);
    for (int k = 0; g.zones_out && k < Cell::kStates; ++k) {
      dstate[k] = k > 0 || Cell::kReadsH ? dstate[k] + kept[k] : kept[k];
      dnext[k] = whole[k];
    }
    if (g.trace_x) trace_gates(row, units, gates);
    const int before = units.v % kAtOnce;  // vectors already held
    if (normalizes(g))
      keep_gates(row, units, gates);
    else if (before + 1 == kAtOnce || units.is_last)
      store_gates(row, {units.first - before * kLanes, before * kLanes + units.count}, held);
    if (carries_h()) store_vector(carried_h(row) + units.first, dstate[0]);
    for (int k = 1; k < Cell::kStates; ++k) store_vector(carried_c(row, k) + units.first, dstate[k]);
    if (projected(g)) store_at(s.wide_h + (step_.slot + row.b) * s.wide_stride, units.first, next[0], units.count);
    for (int p = 0; p < Cell::kParams; ++p) {
      T* sum = s.row_params + (r_.by_problem(row.b, Cell::kParams) + p) * s.unit_stride + units.first;
      store_vector(sum, load_vector(sum) + dparams[p]);
    }
    for (int k = 1; k < Cell::kStates; ++k) norms[k] = norms[k] + dnext[k] * dnext[k];
  }

  // Cell::backward where c is normalised; false if it is not.
  FUSED_RNN_INLINE bool backward_of_normed(const NormedC* normed, const V* keep, const V* state, V* dnext,
                                           GateGradients& gates, V* dstate) const {
    if constexpr (kHasOutputGate)
      if (normed) {
        dnext[1] = dnext[1] + normed->dc;
        Cell::backward_of(keep, state, dnext[0] * normed->tanh_c, dnext[1], gates.x, gates.r, dstate);
        return true;
      }
    return false;
  }

  // With zoneout: the parts of the states' gradients that the former states get, and that the cell's results get, dnext.
  FUSED_RNN_INLINE void split(const Row& row, Units units, V* dnext, V* whole, V* kept) const {
    for (int k = 0; k < Cell::kStates; ++k) {
      whole[k] = dnext[k];
      kept[k] = V(T(0));
      if (!r_.g.zones_out) continue;
      kept[k] = dnext[k] * kept_share<T>(r_.g, here(row, Cell::kStates * r_.g.hidden), k, units);
      dnext[k] = dnext[k] - kept[k];
    }
  }

  // With layer norm: until they go through the norm (norm.h).
  void keep_gates(const Row& row, Units units, const GateGradients& gates) const {
    const State& s = r_.state;
    const int64_t place = r_.by_problem(row.b, Cell::kGates * s.unit_stride) + units.first;
    for (int j = 0; j < Cell::kGates; ++j) {
      store_vector(s.normed_x + place + j * s.unit_stride, gates.x[j]);
      if (Cell::kRecurrent && !kOneGateGradient<Cell>) store_vector(s.normed_r + place + j * s.unit_stride, gates.r[j]);
    }
  }

  // Stores them as rows of A. `units`: one vector of them, or kAtOnce.
  FUSED_RNN_INLINE void store_gates(const Row& row, Units units, const GateGradients (&from)[kAtOnce]) const {
    const State& s = r_.state;
    const int64_t offset = (step_.slot + row.b) * s.gate_stride;
    const auto store = [&](E* to, int64_t j, V first, V second) {
      if (units.count == 2 * kLanes) return store_two_at(to, j, first, second);
      store_at(to, j, first, units.count);
      if (units.count > kLanes) store_at(to, j + kLanes, second, units.count - kLanes);
    };
    const GateGradients &first = from[0], &second = from[kAtOnce - 1];
    for (int j = 0; j < Cell::kGates; ++j) {
      const int64_t column = j * r_.g.hidden + units.first;
      store(s.gates_x + offset, column, first.x[j], second.x[j]);
      if (!kOneGateGradient<Cell>) store(s.gates_r + offset, column, first.r[j], second.r[j]);
    }
  }

  FUSED_RNN_INLINE void trace_states(const Row& row, Units units, const V* dnext) const {
    const int64_t H = r_.g.hidden, place = here(row, Cell::kStates * H) + units.first;
    for (int s = 0; s < Cell::kStates; ++s)
      store_vector(at<S>(r_.g.trace_states, place + s * H), dnext[s], units.count);
  }

  FUSED_RNN_INLINE void trace_gates(const Row& row, Units units, const GateGradients& gates) const {
    const Backward& g = r_.g;
    for (int j = 0; j < Cell::kGates; ++j) {
      const int64_t place = here(row, Cell::kGates * g.hidden) + j * g.hidden + units.first;
      store_vector(at<S>(g.trace_x, place), gates.x[j], units.count);
      if (g.trace_r) store_vector(at<S>(g.trace_r, place), gates.r[j], units.count);
    }
  }

  struct CellInputs {
    const V *keep, *state, *params;
  };
  struct CellGradients {
    V *dnext, *dx, *dr, *dstate, *dparams;  // dnext: in and out
  };

  // In place of Cell::backward: the tangents of its results, for tangents of the saved values and of the states'
  // gradients (dnext).
  FUSED_RNN_INLINE void tangent(const Row& row, Units units, const CellInputs& in, const CellGradients& out) const {
    using D = Dual<V>;
    const Backward& g = r_.g;
    const int64_t H = g.hidden;
    D keeps[Cell::kSaved], states[Cell::kStates], nexts[Cell::kStates], constants[Cell::kParams + 1];
    D dnexts[Cell::kStates], dxs[Cell::kGates], drs[Cell::kGates], dstates[Cell::kStates], to_params[Cell::kParams + 1];
    V keep_tangents[Cell::kSaved], state_tangents[Cell::kStates], *dnext = out.dnext;
    load_saved<Cell>(g, at<S>(g.saved_tangent, r_.saved_at(step_.t, row.b)), units, keep_tangents, state_tangents);
    for (int k = 0; k < Cell::kSaved; ++k) keeps[k] = {in.keep[k], keep_tangents[k]};
    for (int s = !Cell::kReadsH; s < Cell::kStates; ++s) states[s] = {in.state[s], state_tangents[s]};
    for (int p = 0; p < Cell::kParams; ++p) constants[p] = {in.params[p], V(T(0))};
    if (g.added_wide) dnext[0] = dnext[0] + load_vector(at<S>(g.added_wide, here(row, H) + units.first), units.count);
    for (int s = 0; s < Cell::kStates; ++s) {
      const int64_t place = here(row, Cell::kStates * H) + s * H + units.first;
      dnexts[s] = {load_vector(at<S>(g.traced_states, place), units.count), dnext[s]};
    }
    Cell::advance(keeps, states, nexts);
    Cell::backward(keeps, states, nexts, constants, dnexts, dxs, drs, dstates, to_params);
    if (g.trace_wide) store_vector(at<S>(g.trace_wide, here(row, H) + units.first), nexts[0].tangent, units.count);
    for (int j = 0; j < Cell::kGates; ++j) {
      out.dx[j] = dxs[j].tangent;
      out.dr[j] = drs[j].tangent;
    }
    for (int s = 0; s < Cell::kStates; ++s) {
      dnext[s] = dnexts[s].tangent;
      out.dstate[s] = dstates[s].tangent;
    }
    for (int p = 0; p < Cell::kParams; ++p) out.dparams[p] = to_params[p].tangent;
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
