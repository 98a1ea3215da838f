// The state of a run of the forward pass, and the addresses of a row's data in a step.
#pragma once
#include "core/saved_row.h"
#include "cpu/passes/forward/pack.h"
#include "cpu/schedule/team.h"

namespace fused_rnn::cpu {
namespace {

// W of problem.h.
template <class Shape>
FUSED_RNN_INLINE int64_t further_width(const Layer& layer) {
  return (Shape::kStates - 1) * layer.hidden;
}

// Of rows of h.
template <class Shape, class S>
int64_t h_stride_of(const Layer& layer) {
  using T = Arithmetic<S>;
  const int64_t width = Shape::projects(layer) ? PackedWeights<Shape, S>::projection(layer).vectors() * Vec<T>::kLanes
                                               : GatePanels<Shape, T>{layer.hidden}.padded_units();
  return row_stride<Element<S>>(width);
}

// The addresses of a run's row in one step: all panels of a share use them.
template <class Shape, class S>
struct ForwardRow {
  using T = Arithmetic<S>;
  using E = Element<S>;

  int64_t by_row, by_direction;  // in arrays [M, N, D], and among saved rows
  const E* h;                    // as it enters the step
  E *h_next, *wide_h;
  T* c;  // states 1 and on, c_stride apart
  S *saved, *output, *cells;

  // Row i of a ForwardRun in the step `number`, at t.
  template <class ThisRun>
  ForwardRow(const ThisRun& r, int64_t number, int64_t t, int64_t i) {
    const Forward& f = r.f;
    const int64_t row = row_of(f, t, r.run.batch_row(i));
    by_row = (r.run.m * f.rows + row) * f.directions + r.run.d;
    by_direction = r.run.problem * saved_rows(f) + saved_row(f, r.run.d, t, r.run.batch_row(i));
    h = r.state.h[number % 2] + i * r.state.h_stride;
    h_next = r.state.h[(number + 1) % 2] + i * r.state.h_stride;
    wide_h = r.state.wide_h + i * r.state.wide_stride;
    c = r.state.c_of(i);
    saved = at<S>(f.saved, by_direction * f.saved_width);
    output = at<S>(f.output, place_of_output(r, i) * f.output_size);
    cells = at<S>(f.cells, by_row * further_width<Shape>(f));
  }

 private:
  template <class ThisRun>
  int64_t place_of_output(const ThisRun& r, int64_t i) const {
    return r.f.runs_again ? r.run.problem * r.f.batch + r.run.batch_row(i) : by_row;
  }
};

// W_ih x of the next few steps, for one share of the units.
template <class Shape, class S>
struct InputSums {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using Panels = GatePanels<Shape, T>;

  T* sums;         // [panels of the share, rows, width of the panel]
  E* converted;    // [rows, I]: the input as rows of A, if it cannot be read in place
  const E** rows;  // the input rows of these steps, step after step
  int64_t* ids;    // [rows], in place of both
  int64_t* first;  // [steps]: each step's first row
  int64_t most_rows, input_stride;
  E* masked_h;                      // [rows, P]: with recurrent dropout, h times its factor
  QuantizedRows quantized;          // of the input, and then of h
  ForwardRow<Shape, S>* addresses;  // of the current step

  InputSums(const Forward& f, const Plan& plan, Carver& carve) {
    using Choices = ForwardChoices<Shape, S>;
    const int64_t steps = Choices::steps_ahead(f, plan);
    const Panels panels = {f.hidden};
    most_rows = steps * largest_part(f.batch, plan.row_chunks);
    input_stride = row_stride<E>(f.input_size);
    const bool stores_sums = !f.primal && !Choices::fuses(f, plan);
    const int64_t most_panels = largest_part(panels.count(), plan.unit_chunks);
    sums = carve.take<T>(stores_sums ? most_panels * most_rows * panels.width(0) : 0);
    converted = carve.take<E>(kReadInPlace<E, S> || f.tokens ? 0 : most_rows * input_stride);
    rows = carve.take<const E*>(f.tokens ? 0 : most_rows);
    ids = carve.take<int64_t>(f.tokens ? most_rows : 0);
    first = carve.take<int64_t>(steps);
    masked_h = carve.take<E>(f.h_factor ? largest_part(f.batch, plan.row_chunks) * h_stride_of<Shape, S>(f) : 0);
    addresses = carve.take<ForwardRow<Shape, S>>(largest_part(f.batch, plan.row_chunks));
    const bool quantizes = std::is_same_v<Weight<S>, Int8>;
    quantized.stride = QuantizedRows::stride_of(maximum(f.tokens ? 0 : f.input_size, f.hidden));
    quantized.numbers = carve.take<Int8>(quantizes ? most_rows * quantized.stride : 0);
    quantized.scales = carve.take<float>(quantizes ? most_rows : 0);
  }

  // The sums of one of the share's panels. All but the last one are as wide as the first.
  T* of_panel(const Panels& panels, int64_t panel_of_share) const {
    return sums + panel_of_share * panel_stride(panels);
  }
  int64_t panel_stride(const Panels& panels) const { return most_rows * panels.width(0); }
};

// The state of a run: h[s % 2] and c enter step s.
template <class Shape, class S>
struct RunState {
  using T = Arithmetic<S>;
  using E = Element<S>;
  static constexpr int64_t kWidth = GatePanels<Shape, T>::kWidth;

  E *h[2], *wide_h;  // [rows, P]; with a projection, [rows, H] before it
  T* c;              // [rows, kStates - 1, H]
  T* recurrent;      // with layer norm: W_hh h, [panels, rows, width of the panel]
  T *new_c, *gate;   // if c is normalised, [rows, H]: c before zoneout, and the output gate
  int64_t h_stride, wide_stride, c_stride, most_rows;
  Team::Member* team;
  InputSums<Shape, S>* input_sums;  // one for each share

  RunState(const Forward& f, const Plan& plan, Carver& carve) {
    const int64_t rows = largest_part(f.batch, plan.row_chunks), units = GatePanels<Shape, T>{f.hidden}.padded_units();
    h_stride = h_stride_of<Shape, S>(f);
    wide_stride = row_stride<E>(units);
    c_stride = row_stride<T>(units);
    h[0] = carve.take<E>(rows * h_stride);
    h[1] = carve.take<E>(rows * h_stride);
    c = carve.take<T>(rows * (Shape::kStates - 1) * c_stride);
    wide_h = carve.take<E>(Shape::projects(f) ? rows * wide_stride : 0);
    most_rows = rows;
    recurrent = carve.take<T>(normalizes(f) ? rows * GatePanels<Shape, T>{f.hidden}.count() * kWidth : 0);
    for (T** part : {&new_c, &gate}) *part = carve.take<T>(normalizes_c(f) ? rows * c_stride : 0);
    team = carve.take<Team::Member>(plan.unit_chunks);
    input_sums = carve.take<InputSums<Shape, S>>(plan.unit_chunks);
  }

  T* c_of(int64_t row) const { return c + row * (Shape::kStates - 1) * c_stride; }
  T* recurrent_of(int64_t panel, int64_t row) const { return recurrent + (panel * most_rows + row) * kWidth; }
};

// The constants of a run.
//
// The workspace: the packed weights, unless given by the caller; then each run's state, and its shares' input sums.
template <class Shape, class S>
struct ForwardRun {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using Choices = ForwardChoices<Shape, S>;
  using Packed = PackedWeights<Shape, S>;
  using State = RunState<Shape, S>;
  using Sums = InputSums<Shape, S>;
  using W = Weight<S>;
  using Matrix = std::conditional_t<kQuantized<S>, QuantizedWeights<GateMatrix<Shape, W>, W>, GateWeights<Shape, S>>;

  const Forward& f;
  const Plan& plan;
  Run run;
  GatePanels<Shape, T> panels;
  Packed packed;  // of this run's problem
  State state;
  int64_t steps_ahead;

  ForwardRun(const Forward& f, const Plan& plan, void* buffer, int64_t number)
      : f(f),
        plan(plan),
        run(f, plan, number),
        panels{f.hidden},
        packed(part_at<Packed>(f.packed ? const_cast<void*>(f.packed) : buffer, 0, f, plan).of_problem(run.problem)),
        state(part_at<State>(buffer, offset(f, plan, number), f, plan)),
        steps_ahead(Choices::steps_ahead(f, plan)) {}

  static int64_t bytes(const Forward& f, const Plan& plan) { return offset(f, plan, count_runs(f, plan)); }

  // Once, before the first step.
  void prepare(void* buffer, int64_t number) const {
    Team(state.team, plan.unit_chunks).clear();
    const int64_t first = offset(f, plan, number) + size_of<State>(f, plan);
    for (int64_t share = 0; share < plan.unit_chunks; ++share)
      state.input_sums[share] = part_at<Sums>(buffer, first + share * size_of<Sums>(f, plan), f, plan);
  }

  int64_t time(int64_t step) const { return run.d == 0 ? step : f.steps - 1 - step; }
  Range panels_of_share(int64_t share) const { return part_of(panels.count(), plan.unit_chunks, share); }

  // For one share of the units.
  Matrix ih(int64_t share) const {
    const int64_t GH = Shape::kGates * f.hidden, I = f.input_size;
    if constexpr (kQuantized<S>)
      return {{panels, I}, packed.ih, packed.ih_scales, state.input_sums[share].quantized};
    else
      return {{panels, I}, Choices::reading_of_input(f, plan), packed.ih, at<S>(f.weights[run.d].ih, run.m * GH * I)};
  }
  Matrix hh(int64_t share) const {
    const int64_t GH = Shape::kGates * f.hidden, P = f.output_size;
    if constexpr (kQuantized<S>)
      return {{panels, P}, packed.hh, packed.hh_scales, state.input_sums[share].quantized};
    else
      return {{panels, P}, plan.weights, packed.hh, at<S>(f.weights[run.d].hh, run.m * GH * P)};
  }

 private:
  static int64_t offset(const Forward& f, const Plan& plan, int64_t run) {
    const int64_t weights = f.packed ? 0 : size_of<Packed>(f, plan);
    if (run == 0) return weights;
    return weights + run * (size_of<State>(f, plan) + plan.unit_chunks * size_of<Sums>(f, plan));
  }
};

// One step: `rows` of the run are active, and `next_rows` in the next step (0 if there is none).
struct ForwardStep {
  int64_t number, t;
  int64_t slot;  // among the steps whose inputs are multiplied together
  int64_t rows, next_rows;
};

}  // namespace
}  // namespace fused_rnn::cpu
