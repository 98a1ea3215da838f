// W_ih x of the next few steps at once, which reads W_ih once for many rows.
#pragma once
#include "cpu/passes/forward/state.h"

namespace fused_rnn::cpu {
namespace {

template <class Shape, class S>
class LookAhead {
  using T = Arithmetic<S>;
  using E = Element<S>;

 public:
  // For one share of a run's units.
  LookAhead(const ForwardRun<Shape, S>& run, int64_t share)
      : run_(run), share_(share), sums_(run.state.input_sums[share]), first_panel_(run.panels_of_share(share).first) {}

  // Collects the input rows of a step and the following ones.
  void gather(const ForwardStep& step) {
    const Forward& f = run_.f;
    const Run& rows = run_.run;
    const S* input = at<S>(f.input, rows.m * f.input_member_stride);
    const int64_t last = minimum(f.last_step, step.number + run_.steps_ahead);
    int64_t active = step.rows;
    count_ = 0;
    for (int64_t s = step.number; s < last; ++s) {
      const int64_t t = run_.time(s);
      sums_.first[s - step.number] = count_;
      active = rows.active(t, active);
      for (int64_t i = 0; i < active; ++i, ++count_) {
        const int64_t row = row_of(f, t, rows.batch_row(i));
        if (f.tokens)
          sums_.ids[count_] = f.tokens[rows.m * f.input_member_stride + row];
        else
          sums_.rows[count_] = as_read(input + row * f.input_size);
      }
    }
  }

  // W_ih x for some of the share's panels.
  void multiply(const PanelRange& range) const {
    const auto ih = run_.ih(share_);
    const auto sums = [&](int64_t panel) { return of_panel(panel); };
    if (!run_.f.tokens)
      return ih.multiply_by(range, LeftRows{count_, [&](int64_t i) { return sums_.rows[i]; }, 1, run_.f.rows == 1},
                            FetchNothing{}, UseNothing{}, sums);
    for (int64_t panel = range.first; panel < range.last; ++panel) ih.look_up(panel, sums_.ids, count_, sums(panel));
  }

  // The sums of one step's rows.
  struct OfStep {
    const T* sums;
    int64_t first_panel, panel_stride, first_row;

    template <int kUnits>
    const T* row(int64_t panel, int64_t i) const {
      constexpr int64_t kWidth = Shape::kGates * kUnits * Vec<T>::kLanes;
      return row(panel, i, kWidth);
    }
    const T* row(int64_t panel, int64_t i, int64_t width) const {
      return sums + (panel - first_panel) * panel_stride + (first_row + i) * width;
    }
  };
  OfStep of_step(int64_t slot) const {
    return {sums_.sums, first_panel_, sums_.panel_stride(run_.panels), sums_.first[slot]};
  }

  T* of_panel(int64_t panel) const { return sums_.of_panel(run_.panels, panel - first_panel_); }
  // The first row of step `slot` of these.
  int64_t first_row(int64_t slot) const { return sums_.first[slot]; }
  const E* input_row(int64_t row) const { return sums_.rows[row]; }

 private:
  // An input row as a row of A.
  const E* as_read(const S* row) const {
    if constexpr (kReadInPlace<E, S>) {
      return row;
    } else {
      E* converted = sums_.converted + count_ * sums_.input_stride;
      clear_padding(converted, run_.f.input_size);
      load_row_at(converted, 0, row, run_.f.input_size);
      return converted;
    }
  }

  const ForwardRun<Shape, S>& run_;
  int64_t share_;
  const InputSums<Shape, S>& sums_;
  int64_t first_panel_, count_ = 0;
};

}  // namespace
}  // namespace fused_rnn::cpu
