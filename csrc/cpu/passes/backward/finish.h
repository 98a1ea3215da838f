// After the loop: sums over the batch of per-row results.
#pragma once
#include <math.h>

#include "cpu/passes/backward/state.h"

namespace fused_rnn::cpu {
namespace {

inline float square_root(float x) { return ::sqrtf(x); }
inline double square_root(double x) { return ::sqrt(x); }

// Norms of the states' gradients, and gradients of the per-unit parameters, of one problem.
template <class S>
class BackwardEnd {
  using T = Arithmetic<S>;
  using State = BackwardState<S>;

 public:
  BackwardEnd(const Backward& g, const Plan& plan, void* buffer, int64_t problem)
      : g_(g), state_(part_at<State>(buffer, 0, g, plan)), problem_(problem), m_(problem / g.directions) {}

  void run() const {
    if (g_.grad_norms) store_norms();
    if (void* params = g_.grads[problem_ % g_.directions].params) store_params(params);
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

  void store_params(void* params) const {
    const int64_t H = g_.hidden, K = g_.weight_groups;
    for (int64_t group = 0; group < K; ++group) {
      const Range rows = part_of(g_.batch, K, group);
      for (int64_t j = 0; j < state_.cell.params * H; ++j) {
        T sum = 0;
        for (int64_t b = rows.first; b < rows.last; ++b)
          sum +=
              state_.row_params[((problem_ * g_.batch + b) * state_.cell.params + j / H) * state_.unit_stride + j % H];
        store(at<S>(params, (m_ * K + group) * state_.cell.params * H)[j], sum);
      }
    }
  }

  const Backward& g_;
  State state_;
  int64_t problem_, m_;
};

}  // namespace
}  // namespace fused_rnn::cpu
