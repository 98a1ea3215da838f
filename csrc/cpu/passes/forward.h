// The forward pass.
//
// The gates of the units [j*L, (j+1)*L) lie side by side in one panel (L: numbers in a vector; see product.h):
//
//   W_hh, [G*H, P]    ->    panel j:   k = 0:   gate 0 | gate 1 | ... | gate G-1      L units each
//                                      k = 1:   gate 0 | gate 1 | ...
//
// so a register tile of a few batch rows times one panel ends with everything the cell needs of these units, and the
// cell is computed right behind it. W_ih x is computed ahead for some steps at once, in the same panels: it does not
// wait for h, and its weights are then read once for many rows.
//
//   walk           all steps of a run of batch rows, or of some units of it; the other members of its team take the
//   rest
//     look_ahead   W_ih x for the next few steps
//     gates        W_hh h for one step: panels x tiles of rows, the cell after each tile
//     project      h narrowed, where there is a projection
//
// A tangent (problem.h) goes the same way: it has its x from memory, and another cell.
#pragma once
#include "cells/dual.h"
#include "cpu/passes/tokens.h"
#include "cpu/passes/workspace.h"
#include "cpu/schedule/team.h"

namespace fused_rnn::cpu {
namespace {

template <class Cell, class T>
struct GatePanels {
  static constexpr int kLanes = Vec<T>::kLanes;
  static constexpr int kUnits = kMostVectors / Cell::kGates;  // vectors of units in a panel, but for the last one
  static constexpr int kWidth = Cell::kGates * kUnits * kLanes;
  static_assert(kUnits > 0, "a cell of more than four gates needs wider panels");

  int64_t hidden;

  int64_t unit_vectors() const { return (hidden + kLanes - 1) / kLanes; }
  int64_t padded_units() const { return unit_vectors() * kLanes; }
  int64_t panels() const { return (unit_vectors() + kUnits - 1) / kUnits; }
  int64_t first_unit(int64_t panel) const { return panel * kUnits * kLanes; }
  // Of the panel: vectors of units, all vectors, numbers in a line of it.
  int units(int64_t panel) const { return int(minimum(kUnits, unit_vectors() - panel * kUnits)); }
  int vectors(int64_t panel) const { return Cell::kGates * units(panel); }
  int64_t width(int64_t panel) const { return vectors(panel) * kLanes; }

  // f(units(panel)) as a type, so that loops over them are unrolled when compiled.
  template <int kCount = kUnits, class F>
  void with_units(int64_t panel, F f) const {
    if constexpr (kCount > 1)
      if (units(panel) < kCount) return with_units<kCount - 1>(panel, f);
    f(std::integral_constant<int, kCount>());
  }

  // f(vector of the panel, gate, first unit, how many units) for every vector of the panel.
  template <class F>
  void for_vectors(int64_t panel, F f) const {
    for (int g = 0; g < Cell::kGates; ++g)
      for (int u = 0; u < units(panel); ++u) {
        const int64_t unit = first_unit(panel) + u * kLanes;
        f(g * units(panel) + u, g, unit, minimum(kLanes, hidden - unit));
      }
  }
};

// A matrix whose rows are those of all gates.
template <class Cell, class E>
struct GateMatrix {
  using Panels = GatePanels<Cell, Arithmetic<E>>;
  Panels panels;
  int64_t depth;

  int panel_vectors(int64_t panel) const { return panels.vectors(panel); }
  int64_t offset(int64_t panel) const { return panel * Panels::kWidth * padded_depth<E>(depth); }
};

template <class Cell, class S>
class ForwardPass {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using Panels = GatePanels<Cell, T>;
  static constexpr int64_t kLanes = V::kLanes, kWidth = Panels::kWidth;
  static constexpr int64_t kAheadRows = kParts<E> > 1 ? 256 : 96;  // about as many rows are projected ahead at once
  static constexpr bool kRoundsWhenStored = sizeof(S) < sizeof(T) && sizeof(S) != sizeof(E);  // E does it likewise

  static constexpr int64_t kLookUpsToPackFor = 8;  // one in so many of the ids there are

  // Does W_ih have panels? Of a large vocabulary a few columns are read as they lie.
  static bool packs_input(const Forward& f, const Plan& plan) {
    if (f.tokens && !f.packed && f.rows * kLookUpsToPackFor < f.input_size) return false;
    return plan.pack && !f.primal;
  }

  // Are W_ih x and W_hh h one sum, as far as the cell wants it? On tiles, where the cell is then computed beside twice
  // as many products; but not where the weights come from beyond the second-level cache, W_ih then for many steps at
  // once.
  static constexpr int kOwnSums = Cell::kGates - Cell::kSharedGates;
  static constexpr bool kMayFuse = kTiles<E> && Cell::kRecurrent && Cell::kGates + kOwnSums <= kMostVectors &&
                                   (Panels::kUnits == 1 || kOwnSums == 0);
  static constexpr int64_t kMostFused = 350'000;  // weights
  static bool fuses(const Forward& f, const Plan& plan) {
    return kMayFuse && plan.pack && !f.tokens && !f.primal &&
           Cell::kGates * f.hidden * (f.input_size + f.output_size) <= kMostFused;
  }

  // Are W_ih and W_hh read side by side, panel by panel? For a few rows of a single step all the time goes by in
  // reading them, and the next call, which goes the other way (turn, panels.h), finds in the cache what this one read
  // last.
  static bool reads_together(const Forward& f) { return f.steps == 1 && f.batch < 8 && !f.primal; }

  static Panels panels_of(const Layer& f) { return {f.hidden}; }
  static GateMatrix<Cell, E> gates_of(const Layer& f, int64_t depth) { return {panels_of(f), depth}; }
  static Plain<E> projection_of(const Layer& f) { return {f.hidden, f.output_size}; }

  // Weights in panels, for every problem.
  struct Packed {
    E *ih, *hh, *hr;
    T *bias_ih, *bias_hh, *params;
    int64_t ih_size, hh_size, hr_size, bias_size, params_size;

    Packed(const Forward& f, const Plan& plan, Carver& carve) {
      const int64_t Q = problems(f);
      bias_size = Cell::kGates * panels_of(f).padded_units();
      params_size = Cell::kParams * panels_of(f).padded_units();
      ih_size = packs_input(f, plan) ? bias_size * padded_depth<E>(f.input_size) : 0;
      hh_size = plan.pack && Cell::kRecurrent ? bias_size * padded_depth<E>(f.output_size) : 0;
      hr_size = projected(f) ? projection_of(f).size() : 0;
      ih = carve.take<E>(Q * ih_size);
      hh = carve.take<E>(Q * hh_size);
      hr = carve.take<E>(Q * hr_size);
      bias_ih = carve.take<T>(Q * bias_size);
      bias_hh = carve.take<T>(Q * bias_size);
      params = carve.take<T>(Q * params_size);
    }
  };

  static int64_t steps_ahead(const Forward& f, const Plan& plan) {
    const int64_t rows = maximum(1, largest_piece(f.batch, plan.row_chunks));
    return minimum(f.steps, maximum(1, kAheadRows / rows));
  }

  // What is computed ahead for one share of the units.
  struct Ahead {
    T* sums;          // [panels of the share, rows, width of the panel]
    E* converted;     // [rows, I]: the input as the products want it, where they cannot read it as it is
    const E** rows;   // the input rows of some steps, step after step
    int64_t* tokens;  // [rows], in place of both
    int64_t* first;   // [steps]: where each step's rows begin
    int64_t most_rows, input_stride;

    Ahead(const Forward& f, const Plan& plan, Carver& carve) {
      most_rows = steps_ahead(f, plan) * largest_piece(f.batch, plan.row_chunks);
      input_stride = row_stride<E>(f.input_size);
      const int64_t panels = largest_piece(panels_of(f).panels(), plan.unit_chunks);
      sums = carve.take<T>(f.primal || fuses(f, plan) ? 0 : panels * most_rows * panels_of(f).width(0));
      converted = carve.take<E>(kReadInPlace<E, S> || f.tokens ? 0 : most_rows * input_stride);
      rows = carve.take<const E*>(f.tokens ? 0 : most_rows);
      tokens = carve.take<int64_t>(f.tokens ? most_rows : 0);
      first = carve.take<int64_t>(steps_ahead(f, plan));
    }
    T* of_panel(const Panels& panels, int64_t panel_of_share) const {
      return sums + panel_of_share * most_rows * panels.width(0);  // but for the last one all are as wide as the first
    }
  };

  // The state of a run: what enters step s is h[s % 2] and c.
  struct State {
    E *h[2], *wide_h;  // [rows, P]; [rows, H] before the projection
    T* c;              // [rows, H]
    int64_t h_stride, wide_stride, c_stride;
    Team::Member* team;
    Ahead* ahead;  // one for each share

    State(const Forward& f, const Plan& plan, Carver& carve) {
      const int64_t rows = largest_piece(f.batch, plan.row_chunks);
      h_stride = row_stride<E>(projected(f) ? projection_of(f).vectors() * kLanes : panels_of(f).padded_units());
      wide_stride = row_stride<E>(panels_of(f).padded_units());
      c_stride = row_stride<T>(panels_of(f).padded_units());
      h[0] = carve.take<E>(rows * h_stride);
      h[1] = carve.take<E>(rows * h_stride);
      c = carve.take<T>(rows * c_stride);
      wide_h = carve.take<E>(projected(f) ? rows * wide_stride : 0);
      team = carve.take<Team::Member>(plan.unit_chunks);
      ahead = carve.take<Ahead>(plan.unit_chunks);
    }
  };

  // Everything about one walk that stays the same.
  struct Walk {
    const Forward& f;
    const Plan& plan;
    Packed packed;
    Run run;
    State state;
    int64_t steps_ahead;

    Walk(const Forward& f, const Plan& plan, void* buffer, int64_t number)
        : f(f),
          plan(plan),
          packed(part_at<Packed>(f.packed ? const_cast<void*>(f.packed) : buffer, 0, f, plan)),
          run(f, plan, number),
          state(part_at<State>(buffer, packed_bytes_here(f, plan) + number * bytes_of_run(f, plan), f, plan)),
          steps_ahead(ForwardPass::steps_ahead(f, plan)) {}

    int64_t first_panel(int64_t share) const { return cut(panels_of(f).panels(), plan.unit_chunks, share); }
    int64_t time(int64_t step) const { return run.d == 0 ? step : f.steps - 1 - step; }
  };

  // A step as a walk meets it: `rows` of the run take part, and `next_rows` in the step after it (0: there is none).
  struct Step {
    int64_t number, t, rows, next_rows;
  };

  // Row i of a walk in one step: where it lies in arrays [M, N, D] and [M, D, N], and in those the cell writes.
  struct Place {
    int64_t by_row, by_direction;
    const E* h;  // as it enters the step
    E *h_next, *wide_h;
    T* c;
    S *saved, *output, *cells;

    FUSED_RNN_INLINE Place(const Walk& w, const Step& step, int64_t i) {
      const Forward& f = w.f;
      const int64_t row = row_of(f, step.t, w.run.batch_row(i));
      by_row = (w.run.m * f.rows + row) * f.directions + w.run.d;
      by_direction = w.run.problem * f.rows + row;
      h = w.state.h[step.number % 2] + i * w.state.h_stride;
      h_next = w.state.h[(step.number + 1) % 2] + i * w.state.h_stride;
      wide_h = w.state.wide_h + i * w.state.wide_stride;
      c = w.state.c + i * w.state.c_stride;
      saved = at<S>(f.saved, by_direction * f.saved_width);
      output = at<S>(f.output, by_row * f.output_size);
      cells = at<S>(f.cells, by_row * f.hidden);
    }
  };

  static int64_t packed_bytes_here(const Forward& f, const Plan& plan) {
    return f.packed ? 0 : size_of<Packed>(f, plan);
  }
  static int64_t bytes_of_run(const Forward& f, const Plan& plan) {
    return size_of<State>(f, plan) + plan.unit_chunks * size_of<Ahead>(f, plan);
  }

 public:
  static int64_t packed_bytes(const Forward& f, const Plan& plan) { return size_of<Packed>(f, plan); }
  static int64_t bytes(const Forward& f, const Plan& plan) {
    return packed_bytes_here(f, plan) + count_runs(f, plan) * bytes_of_run(f, plan);
  }

  static int64_t count_packs(const Forward& f, const Plan& plan) { return f.packed ? 0 : problems(f) * plan.threads; }

  static void pack_weights(const Forward& f, const Plan& plan, void* buffer, int64_t, int64_t task) {
    const Packed packed = part_at<Packed>(buffer, 0, f, plan);
    const int64_t problem = task / plan.threads, piece = task % plan.threads, m = problem / f.directions;
    const int64_t H = f.hidden, I = f.input_size, P = f.output_size, GH = Cell::kGates * H;
    const Weights& w = f.weights[problem % f.directions];
    const Panels panels = panels_of(f);
    const auto pack = [&](E* to, const S* from, int64_t panel, int64_t depth) {
      E* start = to + gates_of(f, depth).offset(panel);
      panels.for_vectors(panel, [&](int v, int g, int64_t unit, int64_t units) {
        pack_transposed(start, panels.vectors(panel), v, depth, from + (g * H + unit) * depth, depth, units);
      });
    };
    T* bias_ih = packed.bias_ih + problem * packed.bias_size;
    T* bias_hh = packed.bias_hh + problem * packed.bias_size;
    const int64_t last = cut(panels.panels(), plan.threads, piece + 1);
    for (int64_t panel = cut(panels.panels(), plan.threads, piece); panel < last; ++panel) {
      if (packed.ih_size > 0) pack(packed.ih + problem * packed.ih_size, at<S>(w.ih, m * GH * I), panel, I);
      if (plan.pack && Cell::kRecurrent) pack(packed.hh + problem * packed.hh_size, at<S>(w.hh, m * GH * P), panel, P);
      panels.for_vectors(panel, [&](int v, int g, int64_t unit, int64_t units) {
        const auto bias = [&](const void* b) {
          return b ? load_vector(at<S>(b, m * GH + g * H + unit), units) : V(T(0));
        };
        const V ih = bias(w.bias_ih), hh = bias(w.bias_hh);
        // A cell whose gradients of x and r are the same knows only their sum, and that of the biases.
        store_vector(bias_ih + panel * kWidth + v * kLanes, kOneGateGradient<Cell> ? ih + hh : ih);
        store_vector(bias_hh + panel * kWidth + v * kLanes, hh);
      });
    }
    if (piece > 0) return;
    for (int64_t p = 0; p < Cell::kParams; ++p)
      load_row(packed.params + problem * packed.params_size + p * panels.padded_units(),
               at<S>(w.params, (m * Cell::kParams + p) * H), H);
    if (projected(f))
      for (int64_t panel = 0; panel < projection_of(f).panels(); ++panel)
        projection_of(f).pack_transpose_of(packed.hr + problem * packed.hr_size, panel, at<S>(w.hr, m * P * H));
  }

  // A run of one walk prepares itself.
  static int64_t count_runs_to_prepare(const Forward& f, const Plan& plan) {
    return plan.unit_chunks > 1 ? count_runs(f, plan) : 0;
  }
  static void prepare_run(const Forward& f, const Plan& plan, void* buffer, int64_t, int64_t number) {
    const Walk w(f, plan, buffer, number);
    Team(w.state.team, plan.unit_chunks).clear();
    const int64_t first = packed_bytes_here(f, plan) + number * bytes_of_run(f, plan) + size_of<State>(f, plan);
    for (int64_t share = 0; share < plan.unit_chunks; ++share)
      w.state.ahead[share] = part_at<Ahead>(buffer, first + share * size_of<Ahead>(f, plan), f, plan);
  }

  static int64_t count_walks(const Forward& f, const Plan& plan) { return cpu::count_walks(f, plan); }

  static void walk(const Forward& f, const Plan& plan, void* buffer, int64_t, int64_t task) {
    if (plan.unit_chunks == 1) prepare_run(f, plan, buffer, 0, task);
    const Walk w(f, plan, buffer, task / plan.unit_chunks);
    const int64_t member = task % plan.unit_chunks;
    const Team team(w.state.team, plan.unit_chunks);
    int64_t stretch = 0;
    team.join(member);
    Step step = {-1, -1, 0, w.run.active(w.time(0), 0)};
    team.together(member, stretch++, [&](int64_t share) {
      begin(w, share);
      enter_next_step(w, step, share);
    });
    while (++step.number < f.steps) {
      step.t = w.time(step.number);
      step.rows = step.next_rows;
      step.next_rows = step.number + 1 < f.steps ? w.run.active(w.time(step.number + 1), step.rows) : 0;
      team.together(member, stretch++, [&](int64_t share) {
        gates(w, step, share);
        if (!projected(f)) enter_next_step(w, step, share);
      });
      if (projected(f))
        team.together(member, stretch++, [&](int64_t share) {
          project(w, step, share);
          enter_next_step(w, step, share);
        });
    }
    team.leave(member);
  }

 private:
  // Calls f(first, last) with the run of units of h, or of c, that a share writes.
  static int64_t first_of_h(const Walk& w, int64_t share) {
    if (!projected(w.f)) return first_of_c(w, share);
    const Plain<E> hr = projection_of(w.f);
    return minimum(w.f.output_size, hr.first_column(cut(hr.panels(), w.plan.unit_chunks, share)));
  }
  static int64_t first_of_c(const Walk& w, int64_t share) {
    return minimum(w.f.hidden, panels_of(w.f).first_unit(w.first_panel(share)));
  }

  // What no step writes: the ends of rows that products read, padding, and the states of rows of no length.
  static void begin(const Walk& w, int64_t share) {
    const Forward& f = w.f;
    if (share > 0) return;
    for (int64_t i = 0; i < w.run.rows; ++i) {
      for (E* h : w.state.h) clear_rest(h + i * w.state.h_stride, f.output_size);
      if (projected(f)) clear_rest(w.state.wide_h + i * w.state.wide_stride, f.hidden);
    }
    if (!f.lengths) return;
    const int64_t D = f.directions, H = f.hidden, P = f.output_size, m = w.run.m, d = w.run.d;
    for (int64_t i = w.run.active(0, 0); i < w.run.rows; ++i) {
      const int64_t state = w.run.problem * f.batch + w.run.batch_row(i);
      copy_row(at<S>(f.h_n, state * P), at<S>(f.h0, state * P), P);
      if (Cell::kStates > 1) copy_row(at<S>(f.c_n, state * H), at<S>(f.c0, state * H), H);
    }
    if (f.offsets) return;
    for (int64_t t = 0, active = w.run.rows; t < f.steps; ++t) {
      active = w.run.active(t, active);
      for (int64_t i = active; i < w.run.rows; ++i) {
        const int64_t row = row_of(f, t, w.run.batch_row(i));
        zero_row(at<S>(f.output, (m * f.rows + row) * D * P + d * P), P);
        if (f.cells) zero_row(at<S>(f.cells, (m * f.rows + row) * D * H + d * H), H);
        if (f.saved) zero_row(at<S>(f.saved, ((m * D + d) * f.rows + row) * f.saved_width), f.saved_width);
      }
    }
  }

  // Between two steps: stores the states of rows that end here, loads those of rows that begin, applies resets.
  static void enter_next_step(const Walk& w, const Step& step, int64_t share) {
    const Forward& f = w.f;
    if (step.rows == step.next_rows && !f.reset) return;
    const int64_t H = f.hidden, P = f.output_size, h0 = first_of_h(w, share), h1 = first_of_h(w, share + 1);
    const int64_t c0 = first_of_c(w, share), c1 = first_of_c(w, share + 1);
    E* h_next = w.state.h[(step.number + 1) % 2];
    for (int64_t i = 0; i < maximum(step.rows, step.next_rows); ++i) {
      const int64_t b = w.run.batch_row(i), state = w.run.problem * f.batch + b;
      E* h = h_next + i * w.state.h_stride;
      T* c = w.state.c + i * w.state.c_stride;
      if (i >= step.next_rows) {
        store_row_from(at<S>(f.h_n, state * P + h0), h, h0, h1 - h0);
        if (Cell::kStates > 1) store_row(at<S>(f.c_n, state * H + c0), c + c0, c1 - c0);
      } else if (is_reset(f, w.run.m, w.run.d, w.time(step.number + 1), b)) {
        zero_row_at(h, h0, h1 - h0);
        if (Cell::kStates > 1) zero_row(c + c0, c1 - c0);
      } else if (i >= step.rows) {
        load_row_at(h, h0, at<S>(f.h0, state * P + h0), h1 - h0);
        if (Cell::kStates > 1) load_row(c + c0, at<S>(f.c0, state * H + c0), c1 - c0);
      }
    }
  }

  // The input rows of this step and of the next ones. Returns how many there are.
  static int64_t gather(const Walk& w, const Step& step, const Ahead& ahead) {
    const Forward& f = w.f;
    const int64_t I = f.input_size;
    const S* input = at<S>(f.input, w.run.m * f.input_member_stride);
    int64_t count = 0, active = step.rows;
    const int64_t last = minimum(f.steps, step.number + w.steps_ahead);
    for (int64_t s = step.number; s < last; ++s) {
      ahead.first[s - step.number] = count;
      active = w.run.active(w.time(s), active);
      for (int64_t i = 0; i < active; ++i, ++count) {
        if (f.tokens) {
          ahead.tokens[count] = f.tokens[w.run.m * f.input_member_stride + row_of(f, w.time(s), w.run.batch_row(i))];
          continue;
        }
        const S* row = input + row_of(f, w.time(s), w.run.batch_row(i)) * I;
        if constexpr (kReadInPlace<E, S>) {
          ahead.rows[count] = row;
        } else {
          E* converted = ahead.converted + count * ahead.input_stride;
          clear_rest(converted, I);
          load_row_at(converted, 0, row, I);
          ahead.rows[count] = converted;
        }
      }
    }
    return count;
  }

  // W_ih x for these rows, for some panels of a share that begins with `first`.
  static void look_ahead(const Walk& w, const Ahead& ahead, int64_t count, PanelRange range, int64_t first) {
    const Forward& f = w.f;
    const int64_t I = f.input_size, GH = Cell::kGates * f.hidden;
    const Panels panels = panels_of(f);
    const E* packed = w.packed.ih + w.run.problem * w.packed.ih_size;
    const S* plain = at<S>(f.weights[w.run.d].ih, w.run.m * GH * I);
    const auto sums = [&](int64_t panel) { return ahead.of_panel(panels, panel - first); };
    if (!f.tokens)
      return product(w, packed, plain, range, I,
                     LeftRows{count, [&](int64_t i) { return ahead.rows[i]; }, 1, f.rows == 1}, FetchNothing{},
                     UseNothing{}, sums);
    for (int64_t panel = range.first; panel < range.last; ++panel)
      look_up(w, packed, plain, panel, count, ahead.tokens, sums(panel));
  }

  // The product where the rows are one-hot.
  static void look_up(const Walk& w, const E* packed, const S* plain, int64_t panel, int64_t count,
                      const int64_t* tokens, T* sums) {
    const Panels panels = panels_of(w.f);
    const int64_t I = w.f.input_size, width = panels.width(panel);
    for (int64_t i = 0; i < count; ++i, sums += width) {
      if (packs_input(w.f, w.plan))
        load_panel_row(sums, packed + gates_of(w.f, I).offset(panel), panels.vectors(panel), tokens[i]);
      else
        panels.for_vectors(panel, [&](int v, int g, int64_t unit, int64_t units) {
          store_vector(sums + v * kLanes, load_column(plain + (g * w.f.hidden + unit) * I + tokens[i], I, units));
        });
    }
  }

  // Panels of W times rows, from packed weights or, for a step or two, from W as it is.
  template <class Row, class Fetch, class Use, class Results = KeepNothing>
  static void product(const Walk& w, const E* packed, const S* plain, PanelRange range, int64_t depth,
                      const LeftRows<Row>& left, Fetch fetch, Use use, Results results = {}) {
    if (w.plan.pack) return multiply(gates_of(w.f, depth), packed, range, left, fetch, use, results);
    if constexpr (kParts<E> == 1) {
      const Panels panels = panels_of(w.f);
      T buffer[kWidth] __attribute__((aligned(64))) = {};
      for (int64_t panel = range.first; panel < range.last; ++panel)
        for (int64_t i = 0; i < left.count; ++i) {
          T* const kept = results(panel);
          T* const sums = kept ? kept + i * panels.width(panel) : buffer;
          panels.for_vectors(panel, [&](int v, int g, int64_t unit, int64_t units) {
            store_vector(sums + v * kLanes,
                         dot_products(depth, plain + (g * w.f.hidden + unit) * depth, depth, units, left.row(i)));
          });
          use(panel, i, sums);
        }
    }
  }

  static void gates(const Walk& w, const Step& step, int64_t share) {
    const Forward& f = w.f;
    const Ahead& ahead = w.state.ahead[share];
    const int64_t slot = step.number % w.steps_ahead, P = f.output_size, GH = Cell::kGates * f.hidden;
    const PanelRange range = {w.first_panel(share), w.first_panel(share + 1), turn()};
    int64_t count = 0;
    if (slot == 0 && !f.primal) {
      count = gather(w, step, ahead);
      if (!fuses(f, w.plan) && !reads_together(f)) look_ahead(w, ahead, count, {range.first, range.last}, range.first);
    }
    const E* h = w.state.h[step.number % 2];
    const E* packed = w.packed.hh + w.run.problem * w.packed.hh_size;
    const S* plain = at<S>(f.weights[w.run.d].hh, w.run.m * GH * P);
    const Panels panels = panels_of(f);
    const LeftRows rows = {step.rows, [&](int64_t i) { return h + i * w.state.h_stride; }, 1, f.batch == 1};
    const auto fetch = [&](int64_t panel, int64_t i) { fetch_results(w, step, panel, i); };
    if constexpr (kMayFuse)
      if (fuses(f, w.plan)) {
        const LeftRows inputs = {step.rows, [&](int64_t i) { return ahead.rows[ahead.first[slot] + i]; }};
        const auto use_both = [&](int64_t panel, int64_t i, const T* both) {
          panels.with_units(panel,
                            [&](auto known) { cell<decltype(known)::value, true>(w, step, panel, i, both, nullptr); });
        };
        constexpr int kShared = kOwnSums == 0 ? kMostVectors : Cell::kSharedGates;
        return multiply(gates_of(f, f.input_size), w.packed.ih + w.run.problem * w.packed.ih_size, range, inputs, fetch,
                        use_both, KeepNothing{},
                        Second<kShared, GateMatrix<Cell, E>, E, decltype(rows.row)>{gates_of(f, P), packed, rows.row});
      }
    const auto use = [&](int64_t panel, int64_t i, const T* r) {
      panels.with_units(panel, [&](auto known) {
        constexpr int kUnits = decltype(known)::value;
        if (f.primal) return tangent<kUnits>(w, step, panel, i, r);
        const T* x = ahead.of_panel(panels, panel - range.first);
        cell<kUnits, false>(w, step, panel, i, x + (ahead.first[slot] + i) * Cell::kGates * kUnits * kLanes, r);
      });
    };
    const auto of = [&](PanelRange some) {
      if (Cell::kRecurrent) return product(w, packed, plain, some, P, rows, fetch, use);
      for (int64_t panel = some.first; panel < some.last; ++panel)
        for (int64_t i = 0; i < step.rows; ++i) use(panel, i, nullptr);
    };
    if (!reads_together(f)) return of(range);
    for (int64_t n = 0; n < range.count(); ++n) {
      const PanelRange one = {range.at(n), range.at(n) + 1};
      look_ahead(w, ahead, count, one, range.first);
      of(one);
    }
  }

  // What `cell` will write for the backward pass and the output: they lie in memory that no cache holds yet.
  static void fetch_results(const Walk& w, const Step& step, int64_t panel, int64_t i) {
    const Forward& f = w.f;
    const int64_t unit = panels_of(f).first_unit(panel), units = minimum(Panels::kUnits * kLanes, f.hidden - unit);
    const int64_t row = row_of(f, step.t, w.run.batch_row(i));
    if (!projected(f))
      fetch_row_to_write(at<S>(f.output, ((w.run.m * f.rows + row) * f.directions + w.run.d) * f.output_size + unit),
                         units);
    if (!f.saved) return;
    const int64_t saved = (w.run.problem * f.rows + row) * f.saved_width;
    if (f.primal) for_saved<Cell>(f, at<S>(f.primal, saved), unit, units, Cell::kReadsH, &fetch_row<S>);
    for_saved<Cell>(f, at<S>(f.saved, saved), unit, units, !projected(f), &fetch_row_to_write<S>);
  }

  // The cell for row i and the units of one panel. x, r: [vectors of the panel, L]; or x has the sums of both, and then
  // r of the gates that keep it apart.
  template <int kUnits, bool kBoth>
  static void cell(const Walk& w, const Step& step, int64_t panel, int64_t i, const T* x, const T* r) {
    const Forward& f = w.f;
    const Panels panels = panels_of(f);
    const T* bias_ih = w.packed.bias_ih + w.run.problem * w.packed.bias_size + panel * kWidth;
    const T* bias_hh = w.packed.bias_hh + w.run.problem * w.packed.bias_size + panel * kWidth;
    const T* params = w.packed.params + w.run.problem * w.packed.params_size;
    const Place place(w, step, i);
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
      const int64_t unit = panels.first_unit(panel) + u * kLanes, units = minimum(kLanes, f.hidden - unit);
      V xs[Cell::kGates], rs[Cell::kGates], ps[Cell::kParams + 1], state[kMaxStates], next[kMaxStates];
      V keep[Cell::kSaved];
      for (int g = 0; g < Cell::kGates; ++g) {
        const int64_t j = (g * kUnits + u) * kLanes;
        xs[g] = load_vector(x + j) + load_vector(bias_ih + j);
        if (Cell::kRecurrent && !kBoth) rs[g] = load_vector(r + j);
        if (kBoth) rs[g] = g < Cell::kSharedGates ? V(T(0)) : load_vector(x + j + kOwnSums * kUnits * kLanes);
        if (Cell::kRecurrent && !kOneGateGradient<Cell>) rs[g] = rs[g] + load_vector(bias_hh + j);
      }
      for (int p = 0; p < Cell::kParams; ++p) ps[p] = load_vector(params + p * panels.padded_units() + unit);
      if (Cell::kReadsH) state[0] = load_at(place.h, unit);
      if (Cell::kStates > 1) state[1] = load_vector(place.c + unit);
      Cell::forward(xs, rs, state, ps, next, keep);
      leave(f, place, unit, units, keep, state, next);
    }
  }

  // What the cell leaves: for the backward pass, the next step and the user.
  FUSED_RNN_INLINE static void leave(const Forward& f, const Place& place, int64_t unit, int64_t units, const V* keep,
                                     const V* state, const V* next) {
    if (S* saved = place.saved) {
      store_kept<Cell>(f, saved, unit, units, keep);
      if (Cell::kStates > 1) store_vector(saved + entering_c<Cell>(f) + unit, state[1], units);
      if (!projected(f)) store_vector(saved + entering_h<Cell>(f) + unit, load_at(place.h, unit), units);
    }
    if (Cell::kStates > 1) {
      store_vector(place.c + unit, next[1]);
      if (f.cells) store_vector(place.cells + unit, next[1], units);
    }
    if (projected(f))
      store_at(place.wide_h, unit, next[0], units);
    else
      store_h(place, unit, next[0], units);
  }

  // In place of `cell`: how all that changes when x, r and the states do.
  template <int kUnits>
  static void tangent(const Walk& w, const Step& step, int64_t panel, int64_t i, const T* r) {
    const Forward& f = w.f;
    const Panels panels = panels_of(f);
    const int64_t H = f.hidden;
    const Place place(w, step, i);
    const S* primal = at<S>(f.primal, place.by_direction * f.saved_width);
    const T* params = w.packed.params + w.run.problem * w.packed.params_size;
    for (int u = 0; u < kUnits; ++u) {
      const int64_t unit = panels.first_unit(panel) + u * kLanes, units = minimum(kLanes, H - unit);
      V xs[Cell::kGates], rs[Cell::kGates], ps[Cell::kParams + 1], saved[Cell::kSaved], states[kMaxStates];
      V keep[Cell::kSaved], dstates[kMaxStates], dnext[kMaxStates];
      for (int g = 0; g < Cell::kGates; ++g) {
        const auto given = [&](const void* tangents) {
          return tangents ? load_vector(at<S>(tangents, (place.by_row * Cell::kGates + g) * H + unit), units) : V(T(0));
        };
        xs[g] = given(f.tangent_x);
        if (Cell::kRecurrent) rs[g] = load_vector(r + (g * kUnits + u) * kLanes) + given(f.tangent_r);
      }
      for (int p = 0; p < Cell::kParams; ++p) ps[p] = load_vector(params + p * panels.padded_units() + unit);
      load_saved<Cell>(f, primal, unit, units, saved, states);
      if (Cell::kReadsH) dstates[0] = load_at(place.h, unit);
      if (Cell::kStates > 1) dstates[1] = load_vector(place.c + unit);
      Cell::tangent(saved, states, ps, xs, rs, dstates, keep);
      Dual<V> dual_saved[Cell::kSaved], dual_states[kMaxStates], dual_next[kMaxStates];
      for (int k = 0; k < Cell::kSaved; ++k) dual_saved[k] = {saved[k], keep[k]};
      for (int s = !Cell::kReadsH; s < Cell::kStates; ++s) dual_states[s] = {states[s], dstates[s]};
      Cell::advance(dual_saved, dual_states, dual_next);
      for (int s = 0; s < Cell::kStates; ++s) dnext[s] = dual_next[s].tangent;
      leave(f, place, unit, units, keep, dstates, dnext);
    }
  }

  // The next step reads h as it was stored: a sequence cut in two and carried over goes on from the same numbers.
  FUSED_RNN_INLINE static void store_h(const Place& place, int64_t unit, V h, int64_t units) {
    store_vector(place.output + unit, h, units);
    const V as_stored = kRoundsWhenStored ? load_vector(place.output + unit, units) : h;
    store_at(place.h_next, unit, as_stored, kDepthStep<E> > 1 ? units : kLanes);  // products read on: zeros stay zeros
  }

  static void project(const Walk& w, const Step& step, int64_t share) {
    const Forward& f = w.f;
    const int64_t P = f.output_size;
    const Plain<E> hr = projection_of(f);
    multiply(hr, w.packed.hr + w.run.problem * w.packed.hr_size,
             PanelRange{cut(hr.panels(), w.plan.unit_chunks, share), cut(hr.panels(), w.plan.unit_chunks, share + 1)},
             LeftRows{step.rows, [&](int64_t i) { return w.state.wide_h + i * w.state.wide_stride; }, 1, f.batch == 1},
             FetchNothing{}, [&](int64_t panel, int64_t i, const T* sums) {
               const Place place(w, step, i);
               const S* added = at<S>(f.tangent_h, place.by_row * P);
               for (int v = 0; v < hr.panel_vectors(panel); ++v) {
                 const int64_t unit = hr.first_column(panel) + v * kLanes, units = minimum(kLanes, P - unit);
                 V next = load_vector(sums + v * kLanes);
                 if (added) next = next + load_vector(added + unit, units);
                 store_h(place, unit, next, units);
                 if (place.saved) store_vector(place.saved + entering_h<Cell>(f) + unit, load_at(place.h, unit), units);
               }
             });
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
