// Tasks of the weight gradients.
#pragma once
#include "cpu/passes/backward/workspace.h"

namespace fused_rnn::cpu {
namespace {

// A share of one problem's weight gradients.
template <class S>
struct WeightGradShare {
  using Space = BackwardWorkspace<S>;

  const Backward& g;
  WeightGradState<S> sums;
  int64_t problem, m, part, parts;
  const WeightGradients& out;  // null: not requested

  WeightGradShare(const Space& space, int64_t task)
      : g(space.g),
        sums(space.weight_grads()),
        problem(task / space.plan.threads),
        m(problem / space.g.directions),
        part(task % space.plan.threads),
        parts(space.plan.threads),
        out(space.g.grads[problem % space.g.directions]) {}

  static int64_t count(const Backward& g, const Plan& plan) { return problems(g) * plan.threads; }

  Range share_of(int64_t n) const { return part_of(n, parts, part); }
};

// Rows of an array, by index.
template <class S>
struct Rows {
  const S* from = nullptr;
  const int64_t* index = nullptr;
  int64_t stride = 0;

  const S* operator[](int64_t k) const { return from + index[k] * stride; }
};

// A share of one round's contribution.
template <class S>
struct WeightGradTask : WeightGradShare<S> {
  BackwardState<S> state;
  RoundRows rows;  // of the current group
  Strip<S> strip;
  S* masked_h;
  int64_t round;

  WeightGradTask(const BackwardWorkspace<S>& space, int64_t round, int64_t task)
      : WeightGradTask(space, round, task, space.scratch(task)) {}

  // x and h of the rows.
  Rows<S> input_rows() const {
    const Backward& g = this->g;
    return {at<S>(g.input, this->m * g.input_member_stride), rows.rows, g.input_size};
  }
  Rows<S> hidden_rows() const {
    const Backward& g = this->g;
    const int64_t R = g.saved_width;
    return {at<S>(g.saved, this->problem * saved_rows(g) * R) + entering_h(g, state.cell.saved), rows.saved, R};
  }

  // Whether products are computed as outer products of unpacked rows.
  bool has_few_rows() const {
    constexpr bool kSameFormat = std::is_same_v<S, Arithmetic<S>> && std::is_same_v<S, Element<S>>;
    return kSameFormat && !this->g.h_factor && count_rounds(this->g) == 1 && !projected(this->g) && rows.count > 0 &&
           rows.count <= kMostRowsOfOuterProducts;
  }

  // f(group, its first row in the operands), with the group's rows in `rows`.
  template <class F>
  void for_groups(F f) {
    const Backward& g = this->g;
    for (int64_t group = 0, first = 0; group < g.weight_groups; ++group) {
      rows.gather(g, state, round, this->problem, part_of(g.batch, g.weight_groups, group));
      f(group, first);
      first += padded_depth<Element<S>>(rows.count);
    }
  }

 private:
  WeightGradTask(const BackwardWorkspace<S>& space, int64_t round, int64_t task, const TaskScratch<S>& scratch)
      : WeightGradShare<S>(space, task),
        state(space.state()),
        rows(scratch.rows),
        strip(scratch.strip),
        masked_h(scratch.masked_h),
        round(round) {}
};

}  // namespace
}  // namespace fused_rnn::cpu
