// After the loop: sums over the batch of per-row results.
#pragma once
#include "cpu/passes/backward/state.h"
#include "cpu/passes/moments.h"

namespace fused_rnn::cpu {
namespace {

// Norms of the states' gradients, and gradients of the per-unit parameters and of layer norm, of one problem.
template <class S>
class BackwardEnd {
  using T = Arithmetic<S>;
  using State = BackwardState<S>;

 public:
  BackwardEnd(const Backward& g, const Plan& plan, void* buffer, int64_t problem)
      : g_(g), state_(part_at<State>(buffer, 0, g, plan)), problem_(problem), m_(problem / g.directions) {}

  void run() const {
    if (g_.grad_norms) store_norms();
    const WeightGradients& out = g_.grads[problem_ % g_.directions];
    if (out.params) store_sums(out.params, state_.row_params, state_.cell.params);
    if (out.norms) store_sums(out.norms, state_.row_norms, state_.norm.count);
  }

 private:
  void store_norms() const {
    T* out = at<T>(g_.grad_norms, problem_ * state_.cell.states * g_.steps);
    for (int64_t s = 0; s < state_.cell.states; ++s) {
      const int64_t panels = (s == 0 ? State::hidden_weights(g_) : State::projection(g_)).panels();
      for (int64_t t = 0; t < g_.steps; ++t) {
        T sum = 0;
        for (int64_t b = 0; b < g_.batch; ++b) {
          if (!is_active(g_, m_, t, b)) continue;
          for (int64_t panel = 0; panel < panels; ++panel) sum += *state_.norm_at(g_, problem_, s, t, b, panel);
        }
        out[s * g_.steps + t] = square_root(sum);
      }
    }
  }

  // Of `count` numbers of each unit: [Q, B, count, H] to [M, K, count, H].
  void store_sums(void* to, const T* rows, int64_t count) const {
    const int64_t H = g_.hidden, K = g_.weight_groups;
    for (int64_t group = 0; group < K; ++group) {
      const Range own = part_of(g_.batch, K, group);
      for (int64_t j = 0; j < count * H; ++j) {
        T sum = 0;
        for (int64_t b = own.first; b < own.last; ++b)
          sum += rows[((problem_ * g_.batch + b) * count + j / H) * state_.unit_stride + j % H];
        store(at<S>(to, (m_ * K + group) * count * H)[j], sum);
      }
    }
  }

  const Backward& g_;
  State state_;
  int64_t problem_, m_;
};

}  // namespace
}  // namespace fused_rnn::cpu
