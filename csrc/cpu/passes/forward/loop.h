// The loop of the forward pass: a run, or a member's shares of its units, through all steps.
#pragma once
#include "cpu/passes/forward/ahead.h"
#include "cpu/passes/forward/norm.h"

namespace fused_rnn::cpu {
namespace {

template <class Shape, class S>
class ForwardLoop {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using W = Weight<S>;
  using Choices = ForwardChoices<Shape, S>;
  using Packed = PackedWeights<Shape, S>;
  using Panels = GatePanels<Shape, T>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

 public:
  ForwardLoop(const Forward& f, const Plan& plan, void* buffer, int64_t task, const ForwardEpilogues<Shape, S>& cell)
      : cell_(cell),
        w_(f, plan, buffer, task / plan.unit_chunks),
        member_(task % plan.unit_chunks),
        team_(w_.state.team, plan.unit_chunks) {
    if (plan.unit_chunks == 1) w_.prepare(buffer, task);  // with a team, this is a phase of its own
  }

  void run() {
    const Forward& f = w_.f;
    int64_t stretch = 0;
    team_.join(member_);
    step_ = {f.first_step - 1, -1, -1, 0, w_.run.active(w_.time(f.first_step), 0)};
    team_.together(member_, stretch++, [&](int64_t share) {
      begin(share);
      if (f.runs_again)
        load_kept(share);
      else
        enter_next_step(share);
    });
    while (++step_.number < f.last_step) {
      step_.t = w_.time(step_.number);
      step_.rows = step_.next_rows;
      step_.slot = step_.slot + 1 < w_.steps_ahead ? step_.slot + 1 : 0;
      step_.next_rows = step_.number + 1 < f.steps ? w_.run.active(w_.time(step_.number + 1), step_.rows) : 0;
      team_.together(member_, stretch++, [&](int64_t share) {
        gates(share);
        if (!Shape::projects(f) && !normalizes(f)) enter_next_step(share);
      });
      if constexpr (!kQuantized<S>)
        if (normalizes(f)) stretch = normalized(stretch);
      if (Shape::projects(f))
        team_.together(member_, stretch++, [&](int64_t share) {
          project(share);
          enter_next_step(share);
        });
    }
    team_.leave(member_);
  }

 private:
  // The units of h, or of c, that a share writes.
  Range share_of_h(int64_t share) const {
    if (!Shape::projects(w_.f)) return share_of_c(share);
    const Plain<W> hr = Packed::projection(w_.f);
    const Range own = part_of(hr.panels(), w_.plan.unit_chunks, share);
    const int64_t P = w_.f.output_size;
    return {minimum(P, hr.first_column(own.first)), minimum(P, hr.first_column(own.last))};
  }
  Range share_of_c(int64_t share) const {
    const Range own = w_.panels_of_share(share);
    const int64_t H = w_.f.hidden;
    return {minimum(H, w_.panels.first_unit(own.first)), minimum(H, w_.panels.first_unit(own.last))};
  }

  // Writes what no step writes: the padding of rows of A, the output past rows' ends, and the final states of rows of
  // length 0.
  void begin(int64_t share) const {
    const Forward& f = w_.f;
    if (share > 0) return;
    for (int64_t i = 0; i < w_.run.rows; ++i) {
      for (E* h : w_.state.h) clear_padding(h + i * w_.state.h_stride, f.output_size);
      if (Shape::projects(f)) clear_padding(w_.state.wide_h + i * w_.state.wide_stride, f.hidden);
      for (int64_t s = 0; f.h_factor && s < w_.plan.unit_chunks; ++s)
        clear_padding(w_.state.input_sums[s].masked_h + i * w_.state.h_stride, f.output_size);
    }
    if (!f.lengths || f.runs_again) return;
    const int64_t H = f.hidden, P = f.output_size;
    for (int64_t i = w_.run.active(0, 0); i < w_.run.rows; ++i) {
      const int64_t state = w_.run.problem * f.batch + w_.run.batch_row(i);
      copy_row(at<S>(f.h_n, state * P), at<S>(f.h0, state * P), P);
      if (!f.h0) fill_row(at<S>(f.h_n, state * P), initial(0), P);
      for (int k = 1; k < Shape::kStates; ++k) {
        const int64_t place = place_of(state, k);
        copy_row(at<S>(f.c_n, place), at<S>(f.c0, place), H);
        if (!f.c0) fill_row(at<S>(f.c_n, place), initial(k), H);
      }
    }
    if (f.offsets) return;  // packed input has no rows past the end
    for (int64_t t = 0, active = w_.run.rows; t < f.steps; ++t) {
      active = w_.run.active(t, active);
      for (int64_t i = active; i < w_.run.rows; ++i) {
        const ForwardRow<Shape, S> row(w_, 0, t, i);
        zero_row(row.output, P);
        if (row.cells) zero_row(row.cells, further_width<Shape>(f));
        if (row.saved) zero_row(row.saved, f.saved_width);
      }
    }
  }

  // Between two steps.
  void enter_next_step(int64_t share) const {
    const Forward& f = w_.f;
    if (step_.rows != step_.next_rows || f.reset) change_rows(share);
    if (f.kept && !f.runs_again && begins_segment(step_.number + 1)) keep_states(share);
  }

  bool begins_segment(int64_t step) const {
    const Forward& f = w_.f;
    return step == 0 || (step < f.steps && (f.steps - step) % f.segment == 0);
  }
  // f(the kept states of a row, h, c) for every row of the next step; h is the next step's.
  template <class F>
  void for_kept(F f) const {
    const int64_t number = step_.number + 1, width = w_.f.output_size + further_width<Shape>(w_.f);
    for (int64_t i = 0; i < step_.next_rows; ++i) {
      const int64_t place = kept_states_at(w_.f, w_.run.problem, number, w_.run.batch_row(i), width);
      f(at<T>(w_.f.kept, place), w_.state.h[number % 2] + i * w_.state.h_stride, w_.state.c_of(i));
    }
  }
  __attribute__((noinline)) void keep_states(int64_t share) const {
    const Range of_h = share_of_h(share), of_c = share_of_c(share);
    for_kept([&](T* kept, const E* h, const T* c) {
      for (int64_t j = of_h.first; j < of_h.last; j += kLanes)
        store_vector(kept + j, load_at(h, j), minimum(kLanes, of_h.last - j));
      for (int k = 1; k < Shape::kStates; ++k)
        store_row(kept + place_of_state(k) + of_c.first, c + (k - 1) * w_.state.c_stride + of_c.first, of_c.count());
    });
  }
  __attribute__((noinline)) void load_kept(int64_t share) const {
    const Range of_h = share_of_h(share), of_c = share_of_c(share);
    for_kept([&](const T* kept, E* h, T* c) {
      for (int64_t j = of_h.first; j < of_h.last; j += kLanes) {
        const int64_t n = minimum(kLanes, of_h.last - j);
        store_at(h, j, load_vector(kept + j, n), n);
      }
      for (int k = 1; k < Shape::kStates; ++k)
        load_row(c + (k - 1) * w_.state.c_stride + of_c.first, kept + place_of_state(k) + of_c.first, of_c.count());
    });
  }
  // Of state k >= 1 among the kept ones of a row.
  int64_t place_of_state(int k) const { return w_.f.output_size + (k - 1) * w_.f.hidden; }

  // Stores the states of rows that end, loads those of rows that begin, applies resets.
  __attribute__((noinline)) void change_rows(int64_t share) const {
    const Forward& f = w_.f;
    const int64_t P = f.output_size;
    const Range of_h = share_of_h(share), of_c = share_of_c(share);
    const int64_t h0 = of_h.first, c0 = of_c.first;
    E* h_next = w_.state.h[(step_.number + 1) % 2];
    for (int64_t i = 0; i < maximum(step_.rows, step_.next_rows); ++i) {
      const int64_t b = w_.run.batch_row(i), state = w_.run.problem * f.batch + b;
      E* h = h_next + i * w_.state.h_stride;
      T* c = w_.state.c_of(i) + c0;
      const auto begin_anew = [&] {
        if (initial(0) == 0)
          zero_row_at(h, h0, of_h.count());
        else
          fill_row_at<E>(h, h0, initial(0), of_h.count());
        for (int k = 1; k < Shape::kStates; ++k) fill_row(c + (k - 1) * w_.state.c_stride, initial(k), of_c.count());
      };
      if (i >= step_.next_rows) {
        if (f.runs_again) continue;
        store_row_from(at<S>(f.h_n, state * P + h0), h, h0, of_h.count());
        for (int k = 1; k < Shape::kStates; ++k)
          store_row(at<S>(f.c_n, place_of(state, k) + c0), c + (k - 1) * w_.state.c_stride, of_c.count());
      } else if (is_reset(f, w_.run.m, w_.run.d, w_.time(step_.number + 1), b)) {
        begin_anew();
      } else if (i >= step_.rows) {
        if (!f.h0 || (Shape::kStates > 1 && !f.c0)) begin_anew();
        if (f.h0) load_row_at(h, h0, at<S>(f.h0, state * P + h0), of_h.count());
        for (int k = 1; f.c0 && k < Shape::kStates; ++k)
          load_row(c + (k - 1) * w_.state.c_stride, at<S>(f.c0, place_of(state, k) + c0), of_c.count());
      }
    }
  }

  // Of state k where none is given, and after a reset.
  T initial(int k) const { return T(w_.f.primal ? 0 : cell_.initial[k]); }
  // State k >= 1 of a row of [M, D, B] in c0 and c_n.
  int64_t place_of(int64_t row, int k) const { return row * further_width<Shape>(w_.f) + (k - 1) * w_.f.hidden; }

  // One step: W_hh h, with the cell as the epilogue of each tile. Not inlined: the loop would have several copies.
  __attribute__((noinline)) void gates(int64_t share) const {
    const Forward& f = w_.f;
    const int64_t slot = step_.slot;
    const PanelRange range = panels_of(w_.panels_of_share(share), next_direction());
    LookAhead<Shape, S> ahead(w_, share);
    if (slot == 0 && !f.primal) {
      ahead.gather(step_);
      if (!Choices::fuses(f, w_.plan) && !Choices::reads_together(f)) ahead.multiply({range.first, range.last});
    }
    if constexpr (Choices::kMayFuse)
      if (Choices::fuses(f, w_.plan)) return fused_gates(share, range, ahead, slot);
    const auto hh = w_.hh(share);
    const LeftRows rows = entering_h_rows(share);
    const ForwardRows<Shape, S> of_step(w_, step_, share);
    const auto inputs = ahead.of_step(slot);
    const auto fetch = [&](int64_t panel, int64_t i) { of_step.fetch(panel, i); };
    const auto use = [&of_step, &inputs, cell = epilogue()](int64_t panel, int64_t i, PanelSums<S> r) {
      cell(of_step, panel, i, inputs, r);
    };
    const auto compute = [&](const PanelRange& some) {
      if (Shape::kRecurrent) return hh.multiply_by(some, rows, fetch, use);
      for (int64_t panel = some.first; panel < some.last; ++panel)
        for (int64_t i = 0; i < step_.rows; ++i) use(panel, i, PanelSums<S>{});
    };
    if (!Choices::reads_together(f)) return compute(range);
    for (int64_t n = 0; n < range.count(); ++n) {
      const PanelRange one = {range.at(n), range.at(n) + 1};
      ahead.multiply(one);
      compute(one);
    }
  }

  // With layer norm, what follows the products of a step. Returns the next stretch.
  __attribute__((noinline)) int64_t normalized(int64_t stretch) const {
    using Normed = NormedRows<Shape, S>;
    const bool h_follows = normalizes_c(w_.f);
    team_.together(member_, stretch++, [&](int64_t share) {
      const Normed normed(w_, step_, share);
      for (int64_t i = 0; i < step_.rows; ++i) normed.cell(i, cell_.cell);
      if (!h_follows) enter_next_step(share);
    });
    if (!h_follows) return stretch;
    team_.together(member_, stretch++, [&](int64_t share) {
      const Normed normed(w_, step_, share);
      for (int64_t i = 0; i < step_.rows; ++i) normed.h(i);
      enter_next_step(share);
    });
    return stretch;
  }

  // How the sums of a step are used, tile by tile.
  auto epilogue() const {
    if constexpr (!kQuantized<S>)
      if (normalizes(w_.f)) return &NormedRows<Shape, S>::keep;
    return w_.f.primal ? cell_.tangent : cell_.cell;
  }

  // The same with W_ih x and W_hh h accumulated into one sum.
  void fused_gates(int64_t share, const PanelRange& range, const LookAhead<Shape, S>& ahead, int64_t slot) const {
    constexpr int kShared = Choices::kOwnSums == 0 ? kMostVectors : Shape::kSharedGates;
    const auto ih = w_.ih(share), hh = w_.hh(share);
    const ForwardRows<Shape, S> of_step(w_, step_, share);
    const LeftRows rows = entering_h_rows(share);
    const LeftRows inputs = {step_.rows, [&](int64_t i) { return ahead.input_row(ahead.first_row(slot) + i); }};
    const Second<kShared, GateMatrix<Shape, E>, E, decltype(rows.row)> second = {hh.matrix, hh.packed, rows.row};
    const auto fetch = [&](int64_t panel, int64_t i) { of_step.fetch(panel, i); };
    const auto use = [&](int64_t panel, int64_t i, const T* both) { cell_.cell_of_both(of_step, panel, i, both); };
    multiply_both(ih.matrix, ih.packed, range, inputs, fetch, use, second);
  }

  // h as it enters the step's product.
  auto entering_h_rows(int64_t share) const {
    const E* h = w_.f.h_factor ? masked_h(share) : w_.state.h[step_.number % 2];
    const int64_t stride = w_.state.h_stride;
    return LeftRows{step_.rows, [h, stride](int64_t i) { return h + i * stride; }, 1, w_.f.batch == 1};
  }

  // h as it enters the step times h_factor; a copy for each share, which costs little beside its products.
  __attribute__((noinline)) const E* masked_h(int64_t share) const {
    const int64_t P = w_.f.output_size, stride = w_.state.h_stride;
    E* const masked = w_.state.input_sums[share].masked_h;
    for (int64_t i = 0; i < step_.rows; ++i) {
      const S* factor = at<S>(w_.f.h_factor, (w_.run.problem * w_.f.batch + w_.run.batch_row(i)) * P);
      const E* h = w_.state.h[step_.number % 2] + i * stride;
      for (int64_t j = 0; j < P; j += kLanes)
        store_at(masked + i * stride, j, load_at(h, j) * load_vector(factor + j, P - j), minimum(kLanes, P - j));
    }
    return masked;
  }

  // W_hr h.
  __attribute__((noinline)) void project(int64_t share) const {
    const Plain<W> hr = Packed::projection(w_.f);
    const ForwardRows<Shape, S> of_step(w_, step_, share);
    const auto row = [&](int64_t i) { return w_.state.wide_h + i * w_.state.wide_stride; };
    const PanelRange range = panels_of(part_of(hr.panels(), w_.plan.unit_chunks, share));
    const LeftRows rows = {step_.rows, row, 1, w_.f.batch == 1};
    const auto use = [&](int64_t panel, int64_t i, const auto& sums) { of_step.projection(hr, panel, i, sums); };
    if constexpr (kQuantized<S>) {
      const auto& scratch = w_.state.input_sums[share].quantized;
      QuantizedWeights<Plain<W>, W>{hr, w_.packed.hr, w_.packed.hr_scales, scratch}.multiply_by(range, rows,
                                                                                                FetchNothing{}, use);
    } else {
      multiply(hr, w_.packed.hr, range, rows, FetchNothing{}, use);
    }
  }

  const ForwardEpilogues<Shape, S>& cell_;
  const ForwardRun<Shape, S> w_;
  const int64_t member_;
  const Team team_;
  ForwardStep step_;
};

}  // namespace
}  // namespace fused_rnn::cpu
