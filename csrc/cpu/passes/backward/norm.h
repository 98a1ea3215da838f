// Layer norm in a step of the backward pass: from the gradients of x and r to those of W_ih x and W_hh h.
#pragma once
#include "cpu/passes/backward/of_step.h"
#include "cpu/passes/moments.h"

namespace fused_rnn::cpu {
namespace {

template <class S>
class NormedGradients : BackwardRows<S> {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using Rows = BackwardRows<S>;
  using Rows::r_, Rows::step_;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  NormedGradients(const BackwardRun<S>& run, const BackwardStep& step) : Rows(run, step) {}

  // Of row i, for the units of some panels of h, as rows of A. All shares compute the row's sums alike.
  void gates(const Plain<E>& hh, Range panels, int64_t i) const {
    const BackwardState<S>& s = r_.state;
    const Weights& w = r_.g.weights[r_.run.d];
    const Range units = {hh.first_column(panels.first), minimum(r_.g.hidden, hh.first_column(panels.last))};
    const int64_t b = r_.run.batch_row(i);
    one({b, 0, normalised_x(r_.g, s.cell), w.gain_ih, s.normed_x, s.gates_x, s.norm.gain_x, s.norm.bias_x}, units);
    if (s.cell.recurrent)
      one({b, 1, normalised_r(r_.g, s.cell), w.gain_hh, s.normed_r, s.gates_r, s.norm.gain_r,
           s.cell.one_gate_gradient ? -1 : s.norm.bias_r},
          units);
  }

 private:
  // One of the two norms of row b.
  struct Norm {
    int64_t b, number, normalised;  // where it is in the saved row
    const void* gain;
    const T* from;
    E* to;
    int64_t gain_sum, bias_sum;  // where its sums are; below 0: nowhere
  };

  void one(const Norm& norm, Range own) const {
    const Backward& g = r_.g;
    const BackwardState<S>& s = r_.state;
    const int64_t H = g.hidden, G = s.cell.gates, b = norm.b;
    const S* const saved = at<S>(g.saved, r_.saved_at(step_.t, b));
    const S* const normalised = saved + norm.normalised;
    const S* const gain = at<S>(norm.gain, r_.run.m * G * H);
    const T* const from = norm.from + r_.by_problem(b, G * s.unit_stride);
    NormGradient<T> through_norm = {};
    through_norm.scale = load_vector(saved + norm_scales(g, s.cell) + norm.number, 1).v[0];
    for (int64_t gate = 0; gate < G; ++gate)
      by_fours<kLanes>(H, [&, d = from + gate * s.unit_stride, offset = gate * H](int k, int64_t j, int64_t n) {
        through_norm.add(k, load_vector(d + j) * load_vector(gain + offset + j, n),
                         load_vector(normalised + offset + j, n));
      });
    through_norm.end(G * H);
    E* const to = norm.to + (step_.slot + b) * s.gate_stride;
    for (int64_t gate = 0; gate < G; ++gate) {
      T* const to_gain = s.norms_of(g, r_.run.problem, b, norm.gain_sum + gate);
      T* const to_bias = norm.bias_sum < 0 ? nullptr : s.norms_of(g, r_.run.problem, b, norm.bias_sum + gate);
      for (int64_t j = own.first; j < own.last; j += kLanes) {
        const int64_t n = minimum(kLanes, own.last - j), place = gate * H + j;
        const V d = load_vector(from + gate * s.unit_stride + j), y = load_vector(normalised + place, n);
        store_vector(to_gain + j, load_vector(to_gain + j) + d * y);
        if (to_bias) store_vector(to_bias + j, load_vector(to_bias + j) + d);
        store_at(to, place, through_norm(d * load_vector(gain + place, n), y), n);
      }
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
