// After the last round: copies weight gradients that were accumulated in the workspace to the results.
#pragma once
#include "cpu/passes/weight_grads/task.h"

namespace fused_rnn::cpu {
namespace {

template <class S>
class WeightGradStores {
  using T = Arithmetic<S>;
  using State = WeightGradState<S>;

 public:
  WeightGradStores(const BackwardWorkspace<S>& space, int64_t task) : t_(space, task) {}

  // From [I, G*H], by tokens.
  void store_token_grads() const {
    const Backward& g = t_.g;
    const int64_t K = g.weight_groups, GH = traits_of(g.cell).gates * g.hidden, size = GH * g.input_size;
    const Range own = t_.share_of(GH);
    for (int64_t group = 0; t_.out.ih && group < K; ++group)
      store_transposed(at<S>(t_.out.ih, (t_.m * K + group) * size), t_.sums.ih + (t_.problem * K + group) * size,
                       g.input_size, GH, own.first, own.last);
  }

  void store_sums() const {
    if (!t_.g.tokens) store(State::layout_ih(t_.g), t_.out.ih, t_.sums.ih);
    store(State::layout_hh(t_.g), t_.out.hh, t_.sums.hh);
    store(State::layout_hr(t_.g), t_.out.hr, t_.sums.hr);
  }

  // Of the whole problem.
  void store_biases() const {
    copy(t_.out.bias_ih, t_.sums.bias_ih);
    copy(t_.out.bias_hh, t_.sums.bias_hh);
  }

 private:
  void store(const SumLayout<S>& layout, void* out, const T* sums) const {
    if (!out) return;
    const Range own = t_.share_of(layout.rows);
    for (int64_t group = 0; group < layout.groups; ++group) {
      const T* from = sums + (t_.problem * layout.groups + group) * layout.group_size();
      S* to = at<S>(out, (t_.m * layout.groups + group) * layout.rows * layout.columns);
      for (int64_t j = own.first; j < own.last; ++j)
        for (int64_t panel = 0; panel < layout.panels(); ++panel)
          store_row(to + j * layout.columns + panel * layout.kPanel, from + layout.offset(panel, j),
                    layout.width(panel));
    }
  }

  void copy(void* out, const T* sums) const {
    const int64_t n = t_.g.weight_groups * traits_of(t_.g.cell).gates * t_.g.hidden;
    if (out) store_row(at<S>(out, t_.m * n), sums + t_.problem * n, n);
  }

  WeightGradShare<S> t_;
};

}  // namespace
}  // namespace fused_rnn::cpu
