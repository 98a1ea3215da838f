// Layer norm in a step of the forward pass: of W_ih x and W_hh h before the cell, of c before h.
#pragma once
#include "cpu/passes/forward/cell.h"
#include "cpu/passes/moments.h"

namespace fused_rnn::cpu {
namespace {

// The rows of a run in one step. All shares compute a row's moments, each in the same order.
template <class Shape, class S>
class NormedRows : public ForwardRows<Shape, S> {
  using T = Arithmetic<S>;
  using V = Vec<T>;
  using Rows = ForwardRows<Shape, S>;
  using Epilogues = ForwardEpilogues<Shape, S>;
  using Inputs = typename Epilogues::Inputs;
  using Panels = GatePanels<Shape, T>;
  using Rows::run_, Rows::rows_;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int kVectors = Panels::kWidth / kLanes;

 public:
  NormedRows(const ForwardRun<Shape, S>& run, const ForwardStep& step, int64_t share)
      : Rows(run, step, share), step_(step), share_(share), whole_panels_(run.f.hidden / (Panels::kUnits * kLanes)) {}

  // An epilogue in place of the cell: keeps W_hh h.
  static void keep(const Rows& rows, int64_t panel, int64_t i, const Inputs&, PanelSums<S> r) {
    if constexpr (Shape::kRecurrent) rows.keep_recurrent(panel, i, r);
  }

  // The cell of row i, for the panels of this share.
  void cell(int64_t i, typename Epilogues::Epilogue use) const {
    const Forward& f = run_.f;
    const int64_t GH = Shape::kGates * f.hidden;
    const Weights& w = f.weights[run_.run.d];
    S* const saved = rows_[i].saved;
    const auto sums_of_x = [&](int64_t share) {
      const Inputs inputs = LookAhead<Shape, S>(run_, share).of_step(step_.slot);
      return [=, this](int64_t panel) { return inputs.row(panel, i, run_.panels.width(panel)); };
    };
    const auto sums_of_r = [&](int64_t) {
      return [=, this](int64_t panel) { return run_.state.recurrent_of(panel, i); };
    };
    Moments<T> of_x, of_r;
    moments(sums_of_x, sums_of_r, of_x, of_r);
    if (saved && share_ == 0) store_scale(saved, 0, of_x.scale);
    if (saved && share_ == 0) store_scale(saved, 1, of_r.scale);
    const S* const gain_x = at<S>(w.gain_ih, run_.run.m * GH);
    const S* const gain_r = at<S>(w.gain_hh, run_.run.m * GH);
    T x[Panels::kWidth] __attribute__((aligned(64))), r[Panels::kWidth] __attribute__((aligned(64)));
    const Range own = run_.panels_of_share(share_);
    const auto own_x = sums_of_x(share_);
    const auto own_r = sums_of_r(share_);
    for (int64_t panel = own.first; panel < own.last; ++panel) {
      const Inputs normed = {x, panel, 0, -i};
      normalise(panel, own_x(panel), of_x, gain_x, at<S>(saved, normalised_x(f, Shape::kTraits)), x);
      if (Shape::kRecurrent)
        normalise(panel, own_r(panel), of_r, gain_r, at<S>(saved, normalised_r(f, Shape::kTraits)), r);
      use(*this, panel, i, normed, r);
    }
  }

  // h of row i, for the units of this share, from c and the output gate.
  void h(int64_t i) const {
    const Forward& f = run_.f;
    const int64_t H = f.hidden;
    const auto& row = rows_[i];
    const T* const c = run_.state.new_c + i * run_.state.c_stride;
    const T* const gate = run_.state.gate + i * run_.state.c_stride;
    const Moments<T> of_c = moments_of(c, H);
    if (row.saved && share_ == 0) store_scale(row.saved, 2, of_c.scale);
    S* const normalised = at<S>(row.saved, normalised_c(f, Shape::kTraits));
    const Weights& w = f.weights[run_.run.d];
    const Range own = run_.panels_of_share(share_);
    const int64_t end = minimum(H, run_.panels.first_unit(own.last));
    for (int64_t first = run_.panels.first_unit(own.first); first < end; first += kLanes) {
      const Units units = {first, minimum(kLanes, end - first)};
      const V value = (load_vector(c + first) - V(of_c.mean)) * V(of_c.scale);
      if (normalised) store_vector(normalised + first, value, units.count);
      V next = load_vector(gate + first) * tanh(normed_c<S>(w, run_.run.m * H, units, value));
      if (f.zones_out)
        next = zone_out(f, kept_share<T>(f, row.by_row * Shape::kStates * H, 0, units), load_at(row.h, first), next);
      Rows::store_h(row, units, next);
    }
  }

 private:
  // f(vector of the panel, place among the gate rows, their number) for every vector of a panel.
  template <class F>
  FUSED_RNN_INLINE void for_vectors(int64_t panel, F f) const {
    if (panel >= whole_panels_)
      return run_.panels.for_vectors(
          panel, [&](int v, int g, Units units) { f(v, g * run_.f.hidden + units.first, units.count); });
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      f(v, v / Panels::kUnits * run_.f.hidden + panel * Panels::kUnits * kLanes + v % Panels::kUnits * kLanes, kLanes);
  }

  // Of all gate rows of row i; sums_of_x(share)(panel) is where those of a panel are. Both at once: each is a chain of
  // operations that wait for each other.
  template <class SumsOfX, class SumsOfR>
  void moments(SumsOfX sums_of_x, SumsOfR sums_of_r, Moments<T>& of_x, Moments<T>& of_r) const {
    const T count = T(Shape::kGates * run_.f.hidden);
    V x_sums[kVectors], r_sums[kVectors];
    const auto add_all = [&](auto f) {
      for (int v = 0; v < kVectors; ++v) x_sums[v] = r_sums[v] = V(T(0));
      for (int64_t share = 0; share < run_.plan.unit_chunks; ++share) {
        const auto x = sums_of_x(share);
        const auto r = sums_of_r(share);
        const Range own = run_.panels_of_share(share);
        for (int64_t panel = own.first; panel < own.last; ++panel)
          for_vectors(panel, [&, from_x = x(panel), from_r = r(panel)](int v, int64_t, int64_t count) {
            x_sums[v] = x_sums[v] + f(load_vector(from_x + v * kLanes), of_x, count);
            if (Shape::kRecurrent) r_sums[v] = r_sums[v] + f(load_vector(from_r + v * kLanes), of_r, count);
          });
      }
    };
    add_all([](V x, const Moments<T>&, int64_t count) { return first_of(x, count); });
    of_x.mean = total(x_sums) / count;
    of_r.mean = total(r_sums) / count;
    add_all([](V x, const Moments<T>& moments, int64_t count) {
      const V from_mean = first_of(x - V(moments.mean), count);
      return from_mean * from_mean;
    });
    of_x.scale = scale_of(total(x_sums) / count);
    of_r.scale = scale_of(total(r_sums) / count);
  }
  static T total(const V (&sums)[kVectors]) {
    V all = sums[0];
    for (int v = 1; v < kVectors; ++v) all = all + sums[v];
    return sum_of(all);
  }

  FUSED_RNN_INLINE void normalise(int64_t panel, const T* sums, const Moments<T>& moments, const S* gain, S* saved,
                                  T* to) const {
    for_vectors(panel, [&](int v, int64_t place, int64_t count) {
      const V value = (load_vector(sums + v * kLanes) - V(moments.mean)) * V(moments.scale);
      if (saved) store_vector(saved + place, value, count);
      store_vector(to + v * kLanes, value * load_vector(gain + place, count));
    });
  }

  void store_scale(S* saved, int64_t k, T scale) const {
    store_vector(saved + norm_scales(run_.f, Shape::kTraits) + k, V(scale), 1);
  }

  const ForwardStep& step_;
  int64_t share_, whole_panels_;
};

}  // namespace
}  // namespace fused_rnn::cpu
