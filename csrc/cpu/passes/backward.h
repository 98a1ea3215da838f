// The backward pass. It goes through time in rounds of some hundred rows, so that the gradients of the gates are used
// for the weights while they are still in the cache:
//
//   walk           some steps back through time: gradients of the gates, of the initial states, of the norms
//   input_grads    dL/dx of these steps
//   pack_operands  x and h of these steps, in panels
//   weight_grads   their share of dL/dW, any gate rows side by side (weight_grads.h)
//
// A step of the walk begins with dh = W_hh^T dgates of the step it comes from, a product whose tiles end with the cell,
// like those of the forward pass. Each sum has one fixed order, whatever the number of threads.
#pragma once
#include "cells/dual.h"
#include "cpu/passes/workspace.h"
#include "cpu/schedule/team.h"

namespace fused_rnn::cpu {
namespace {

constexpr int64_t kRoundRows = kParts<Element<float>> > 1 ? 256 : 512;  // of each group of weight gradients

inline int64_t steps_of_round(const Backward& g) {
  return minimum(g.steps, maximum(1, kRoundRows * g.weight_groups / maximum(1, g.batch)));
}
inline int64_t count_rounds(const Backward& g) { return (g.steps + steps_of_round(g) - 1) / steps_of_round(g); }

// Step `step` of the walk that direction d takes back through time.
inline int64_t time_back(const Backward& g, int64_t d, int64_t step) { return d == 0 ? g.steps - 1 - step : step; }

// What the phases hand on.
template <class Cell, class S>
struct Gradients {
  using T = Arithmetic<S>;
  using E = Element<S>;
  static constexpr int64_t kLanes = Vec<T>::kLanes;

  E *ih, *hh, *hr;  // [Q] weights in panels
  T* params;
  // Of the steps of a round and the one before it: step s of a walk lies in slot s % slots.
  E *gates_x, *gates_r;  // [Q, slots, B, G*H] gradients of x and r; one array when they are equal
  E *outputs, *wide_h;   // [Q, slots, B, P] and [.., H]: with a projection, dL/dh and h before it
  T *dh, *dc;            // [Q, B, H] what a step hands on besides the gates: the direct way of h, and c
  T* row_params;         // [Q, B, kParams, H] gradients of the per-unit parameters
  T* norms;              // [Q, kStates, T, B, panels] sums of squares over the units of a panel
  E* zeros;              // stands for a row that hands on nothing
  T* zero_sums;          // and for what products make of it
  Team::Member* teams;   // [Q * runs, members]
  int64_t slots, gate_stride, output_stride, wide_stride, unit_stride, norm_panels;

  static Plain<E> input_weights(const Backward& g) { return {Cell::kGates * g.hidden, g.input_size}; }
  static Plain<E> hidden_weights(const Backward& g) { return {Cell::kGates * g.hidden, g.output_size}; }
  static Plain<E> projection(const Backward& g) { return {g.output_size, g.hidden}; }

  Gradients(const Backward& g, const Plan& plan, Carver& carve) {
    const int64_t Q = problems(g);
    slots = steps_of_round(g) + 1;
    gate_stride = row_stride<E>(Cell::kGates * g.hidden);
    output_stride = row_stride<E>(g.output_size);
    wide_stride = row_stride<E>(g.hidden);
    unit_stride = row_stride<T>(g.hidden);
    norm_panels = maximum(hidden_weights(g).panels(), projection(g).panels());
    ih = carve.take<E>(g.grad_input ? Q * input_weights(g).size() : 0);
    hh = carve.take<E>(Cell::kRecurrent ? Q * hidden_weights(g).size() : 0);
    hr = carve.take<E>(projected(g) ? Q * projection(g).size() : 0);
    params = carve.take<T>(Q * Cell::kParams * unit_stride);
    gates_x = carve.take<E>(Q * slots * g.batch * gate_stride);
    gates_r = kOneGateGradient<Cell> ? gates_x : carve.take<E>(Q * slots * g.batch * gate_stride);
    outputs = carve.take<E>(projected(g) ? Q * slots * g.batch * output_stride : 0);
    wide_h = carve.take<E>(projected(g) ? Q * slots * g.batch * wide_stride : 0);
    dh = carve.take<T>(!Cell::kReadsH ? 0 : Q * g.batch * unit_stride);
    dc = carve.take<T>(Cell::kStates > 1 ? Q * g.batch * unit_stride : 0);
    row_params = carve.take<T>(Q * g.batch * Cell::kParams * unit_stride);
    norms = carve.take<T>(g.grad_norms ? Q * Cell::kStates * g.steps * g.batch * norm_panels : 0);
    zeros = carve.take<E>(maximum(gate_stride, output_stride));
    zero_sums = carve.take<T>(kMostVectors * kLanes);
    teams = carve.take<Team::Member>(cpu::count_walks(g, plan));
  }

  // Where the rows of step `step` begin in `gates_x`, `gates_r`, `outputs` and `wide_h`.
  int64_t first_row(const Backward& g, int64_t problem, int64_t step) const {
    return (problem * slots + step % slots) * g.batch;
  }
};

template <class Cell, class S>
class BackwardPass {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using Shared = Gradients<Cell, S>;
  static constexpr int64_t kLanes = V::kLanes;

  // Everything about one walk that stays the same.
  struct Walk {
    const Backward& g;
    const Plan& plan;
    Shared shared;
    Run run;
    Team team;

    Walk(const Backward& g, const Plan& plan, void* buffer, int64_t number)
        : g(g),
          plan(plan),
          shared(part_at<Shared>(buffer, 0, g, plan)),
          run(g, plan, number),
          team(shared.teams + number * plan.unit_chunks, plan.unit_chunks) {}

    // Row b of [Q, B, width], of [M, N, D, width], and of `saved`.
    int64_t state(int64_t b, int64_t width) const { return (run.problem * g.batch + b) * width; }
    int64_t output(int64_t t, int64_t b, int64_t width) const {
      return ((run.m * g.rows + row_of(g, t, b)) * g.directions + run.d) * width;
    }
    const S* saved(int64_t t, int64_t b) const {
      return at<S>(g.saved, (run.problem * g.rows + row_of(g, t, b)) * g.saved_width);
    }
  };

  // A step as a walk meets it. The step it came from has handed on gradients for its rows; rows that do not take part
  // in this one end: theirs are the gradients of the initial states. The last step of all has no rows.
  struct Step {
    int64_t number, t, rows, slot;         // slot: Gradients::first_row
    int64_t from_t, from_rows, from_slot;  // the step it came from
  };

 public:
  static int64_t count_packs(const Backward& g, const Plan& plan) { return problems(g) * plan.threads; }

  static void prepare(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const int64_t problem = task / plan.threads, piece = task % plan.threads, m = problem / g.directions;
    const int64_t H = g.hidden, I = g.input_size, P = g.output_size, GH = Cell::kGates * H;
    const Weights& w = g.weights[problem % g.directions];
    const auto pack = [&](const Plain<E>& matrix, E* to, const void* weights) {
      const S* from = at<S>(weights, m * matrix.depth * matrix.columns);
      const int64_t last = cut(matrix.panels(), plan.threads, piece + 1);
      for (int64_t panel = cut(matrix.panels(), plan.threads, piece); panel < last; ++panel)
        matrix.pack(to + problem * matrix.size(), panel, [&](int64_t k) { return from + k * matrix.columns; });
    };
    if (g.grad_input) pack(Shared::input_weights(g), shared.ih, w.ih);
    if (Cell::kRecurrent) pack(Shared::hidden_weights(g), shared.hh, w.hh);
    if (projected(g)) pack(Shared::projection(g), shared.hr, w.hr);
    if (piece > 0) return;

    for (int64_t p = 0; p < Cell::kParams; ++p)
      load_row(shared.params + (problem * Cell::kParams + p) * shared.unit_stride,
               at<S>(w.params, (m * Cell::kParams + p) * H), H);
    zero_row(shared.row_params + problem * g.batch * Cell::kParams * shared.unit_stride,
             g.batch * Cell::kParams * shared.unit_stride);
    for (int64_t i = problem * shared.slots * g.batch; i < (problem + 1) * shared.slots * g.batch; ++i) {
      clear_rest(shared.gates_x + i * shared.gate_stride, GH);
      clear_rest(shared.gates_r + i * shared.gate_stride, GH);
      if (projected(g)) clear_rest(shared.outputs + i * shared.output_stride, P);
    }
    if (problem == 0) zero_row(shared.zeros, maximum(shared.gate_stride, shared.output_stride));
    if (problem == 0) zero_row(shared.zero_sums, kMostVectors * kLanes);
    const int64_t members = plan.row_chunks * plan.unit_chunks;
    Team(shared.teams + problem * members, members).clear();
    if (!g.lengths) return;
    for (int64_t b = 0; b < g.batch; ++b) {  // rows of no length
      if (is_active(g, m, 0, b)) continue;
      const int64_t state = problem * g.batch + b;
      copy_row(at<S>(g.grad_h0, state * P), at<S>(g.grad_h_n, state * P), P);
      if (Cell::kStates > 1) copy_row(at<S>(g.grad_c0, state * H), at<S>(g.grad_c_n, state * H), H);
    }
    if (!g.grad_input || g.offsets || problem % g.directions > 0) return;
    for (int64_t t = 0; t < g.steps; ++t)  // padding gets no gradient
      for (int64_t b = 0; b < g.batch; ++b)
        if (!is_active(g, m, t, b)) zero_row(at<S>(g.grad_input, (m * g.rows + row_of(g, t, b)) * I), I);
  }

  static int64_t count_walks(const Backward& g, const Plan& plan) { return cpu::count_walks(g, plan); }

  static void walk(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    const Walk w(g, plan, buffer, task / plan.unit_chunks);
    const int64_t member = task % plan.unit_chunks, stretches = projected(g) ? 2 : 1;
    const int64_t first = round * steps_of_round(g), end = minimum(g.steps, first + steps_of_round(g));
    const int64_t last = end == g.steps ? end : end - 1;  // step g.steps closes the walk
    w.team.join(member);
    Step step = {};
    if (first > 0) step.t = time_back(g, w.run.d, first - 1);
    if (first > 0) step.rows = w.run.active(step.t, 0);
    if (first > 0) step.slot = w.shared.first_row(g, w.run.problem, first - 1);
    for (step.number = first; step.number <= last; ++step.number) {
      step.from_t = step.t;
      step.from_rows = step.rows;
      step.from_slot = step.slot;
      step.t = step.number < g.steps ? time_back(g, w.run.d, step.number) : -1;
      step.rows = step.number < g.steps ? w.run.active(step.t, step.from_rows) : 0;
      step.slot = w.shared.first_row(g, w.run.problem, step.number);
      w.team.together(member, step.number * stretches, [&](int64_t share) { hidden_grads(w, step, share); });
      if (projected(g))
        w.team.together(member, step.number * stretches + 1, [&](int64_t share) { projected_grads(w, step, share); });
    }
    w.team.leave(member);
  }

  static int64_t count_ends(const Backward& g, const Plan&) {
    return g.grad_norms || Cell::kParams > 0 ? problems(g) : 0;
  }

  // Sums over the batch of what rows kept to themselves.
  static void finish(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t problem) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const int64_t m = problem / g.directions, H = g.hidden, K = g.weight_groups;
    if (g.grad_norms) {
      T* out = at<T>(g.grad_norms, problem * Cell::kStates * g.steps);
      for (int64_t i = 0; i < Cell::kStates * g.steps; ++i) {
        const int64_t panels = (i < g.steps ? Shared::hidden_weights(g) : Shared::projection(g)).panels();
        T sum = 0;
        for (int64_t b = 0; b < g.batch; ++b) {
          if (!is_active(g, m, i % g.steps, b)) continue;
          for (int64_t panel = 0; panel < panels; ++panel)
            sum += *norm_at(g, shared, problem, i / g.steps, i % g.steps, b, panel);
        }
        out[i] = square_root(sum);
      }
    }
    if (void* params = g.grads[problem % g.directions].params) {
      for (int64_t group = 0; group < K; ++group)
        for (int64_t j = 0; j < Cell::kParams * H; ++j) {
          T sum = 0;
          for (int64_t b = cut(g.batch, K, group); b < cut(g.batch, K, group + 1); ++b)
            sum += shared.row_params[((problem * g.batch + b) * Cell::kParams + j / H) * shared.unit_stride + j % H];
          store(at<S>(params, (m * K + group) * Cell::kParams * H)[j], sum);
        }
    }
  }

 private:
  static float square_root(float x) { return ::sqrtf(x); }
  static double square_root(double x) { return ::sqrt(x); }

  static T* norm_at(const Backward& g, const Shared& shared, int64_t problem, int64_t state, int64_t t, int64_t b,
                    int64_t panel) {
    return shared.norms + (((problem * Cell::kStates + state) * g.steps + t) * g.batch + b) * shared.norm_panels +
           panel;
  }

  // Did the step that was walked before zero row i's state when it began? Then nothing flows back through it.
  static bool is_cut(const Walk& w, const Step& step, int64_t i, int64_t b) {
    return w.g.reset && i < step.from_rows && is_reset(w.g, w.run.m, w.run.d, step.from_t, b);
  }

  // dL/dh of one share of h: what came back through the gates, and what joins it here.
  static void hidden_grads(const Walk& w, const Step& step, int64_t share) {
    const Backward& g = w.g;
    const Shared& shared = w.shared;
    const Plain<E> hh = Shared::hidden_weights(g);
    const auto row = [&](int64_t i) -> const E* {
      const int64_t b = w.run.batch_row(i);
      if (i >= step.from_rows || is_cut(w, step, i, b)) return shared.zeros;
      return shared.gates_r + (step.from_slot + b) * shared.gate_stride;
    };
    const int64_t rows = maximum(step.rows, step.from_rows);
    const auto fetch = [&](int64_t panel, int64_t i) {
      if (i >= step.rows) return;
      const int64_t b = w.run.batch_row(i), unit = hh.first_column(panel);
      const int64_t units = minimum(hh.panel_vectors(panel) * kLanes, g.output_size - unit);
      if (g.grad_output) fetch_row(at<S>(g.grad_output, w.output(step.t, b, g.output_size) + unit), units);
      if (!projected(g)) for_saved<Cell>(g, w.saved(step.t, b), unit, units, Cell::kReadsH, &fetch_row<S>);
    };
    const auto use = [&](int64_t panel, int64_t i, const T* sums) { end_of_product(w, step, panel, i, sums); };
    const PanelRange range = {cut(hh.panels(), w.plan.unit_chunks, share),
                              cut(hh.panels(), w.plan.unit_chunks, share + 1), step.number % 2 == 1};
    if (Cell::kRecurrent && step.from_rows > 0)
      return multiply(hh, shared.hh + w.run.problem * hh.size(), range, LeftRows{rows, row, 1, g.batch == 1}, fetch,
                      use);
    for (int64_t panel = range.first; panel < range.last; ++panel)
      for (int64_t i = 0; i < rows; ++i) use(panel, i, shared.zero_sums);
  }

  static void end_of_product(const Walk& w, const Step& step, int64_t panel, int64_t i, const T* sums) {
    const Backward& g = w.g;
    const Plain<E> hh = Shared::hidden_weights(g);
    const int64_t P = g.output_size, b = w.run.batch_row(i);
    const bool cut = is_cut(w, step, i, b);
    const int vectors = hh.panel_vectors(panel);
    V norm_h{T(0)}, norm_c{T(0)};
    GateGradients held[kAtOnce];
    for (int v = 0; v < vectors; ++v) {
      const int64_t unit = hh.first_column(panel) + v * kLanes, units = minimum(kLanes, P - unit);
      V dh = load_vector(sums + v * kLanes);
      if (i < step.from_rows) {
        if (Cell::kReadsH && !cut) dh = dh + load_vector(w.shared.dh + w.state(b, w.shared.unit_stride) + unit);
        if (g.added_h && !cut) dh = dh + load_vector(at<S>(g.added_h, w.output(step.from_t, b, P) + unit), units);
      } else if (g.grad_h_n) {
        dh = load_vector(at<S>(g.grad_h_n, w.state(b, P) + unit), units);
      }
      if (i >= step.rows) {
        store_vector(at<S>(g.grad_h0, w.state(b, P) + unit), dh, units);
        if (Cell::kStates > 1 && !projected(g)) end_of_c(w, step, i, b, cut, unit, units);
        continue;
      }
      if (g.grad_output) dh = dh + load_vector(at<S>(g.grad_output, w.output(step.t, b, P) + unit), units);
      if (g.grad_clip > 0) dh = clamp(dh, T(-g.grad_clip), T(g.grad_clip));
      norm_h = norm_h + dh * dh;
      if (g.trace_output) store_vector(at<S>(g.trace_output, w.output(step.t, b, P) + unit), dh, units);
      if (projected(g))
        store_at(w.shared.outputs + (step.slot + b) * w.shared.output_stride, unit, dh, units);
      else
        norm_c = norm_c + cell(w, step, i, b, cut, unit, units, dh, held, v, vectors);
    }
    if (!g.grad_norms || i >= step.rows) return;
    *norm_at(g, w.shared, w.run.problem, 0, step.t, b, panel) = sum_of(norm_h);
    if (Cell::kStates > 1 && !projected(g)) *norm_at(g, w.shared, w.run.problem, 1, step.t, b, panel) = sum_of(norm_c);
  }

  // With a projection: on to h before it, and the cell.
  static void projected_grads(const Walk& w, const Step& step, int64_t share) {
    const Backward& g = w.g;
    const Shared& shared = w.shared;
    const Plain<E> hr = Shared::projection(g);
    const auto row = [&](int64_t i) -> const E* {
      if (i >= step.rows) return shared.zeros;
      return shared.outputs + (step.slot + w.run.batch_row(i)) * shared.output_stride;
    };
    multiply(hr, shared.hr + w.run.problem * hr.size(),
             PanelRange{cut(hr.panels(), w.plan.unit_chunks, share), cut(hr.panels(), w.plan.unit_chunks, share + 1)},
             LeftRows{maximum(step.rows, step.from_rows), row, 1, g.batch == 1}, FetchNothing{},
             [&](int64_t panel, int64_t i, const T* sums) {
               const int64_t b = w.run.batch_row(i);
               const bool cut = is_cut(w, step, i, b);
               const int vectors = hr.panel_vectors(panel);
               V norm{T(0)};
               GateGradients held[kAtOnce];
               for (int v = 0; v < vectors; ++v) {
                 const int64_t unit = hr.first_column(panel) + v * kLanes, units = minimum(kLanes, g.hidden - unit);
                 if (i >= step.rows)
                   end_of_c(w, step, i, b, cut, unit, units);
                 else
                   norm =
                       norm + cell(w, step, i, b, cut, unit, units, load_vector(sums + v * kLanes), held, v, vectors);
               }
               if (g.grad_norms && i < step.rows)
                 *norm_at(g, shared, w.run.problem, 1, step.t, b, panel) = sum_of(norm);
             });
  }

  // dL/dc that reaches these units of row i from outside the step.
  static V incoming_dc(const Walk& w, const Step& step, int64_t i, int64_t b, bool cut, int64_t unit, int64_t units) {
    if (cut) return V(T(0));
    if (i < step.from_rows) return load_vector(w.shared.dc + w.state(b, w.shared.unit_stride) + unit);
    return w.g.grad_c_n ? load_vector(at<S>(w.g.grad_c_n, w.state(b, w.g.hidden) + unit), units) : V(T(0));
  }

  static void end_of_c(const Walk& w, const Step& step, int64_t i, int64_t b, bool cut, int64_t unit, int64_t units) {
    store_vector(at<S>(w.g.grad_c0, w.state(b, w.g.hidden) + unit), incoming_dc(w, step, i, b, cut, unit, units),
                 units);
  }

  struct GateGradients {
    V x[Cell::kGates], r[Cell::kGates];
  };
  // Parts of floats fill lines of the cache when two vectors are stored at once.
  static constexpr int kAtOnce = kParts<E> > 1 ? 2 : 1;

  // For products to read, those of one vector of units or of two.
  FUSED_RNN_INLINE static void store_gates(const Walk& w, const Step& step, int64_t b, int64_t unit, int64_t units,
                                           const GateGradients (&from)[kAtOnce]) {
    const int64_t row = (step.slot + b) * w.shared.gate_stride;
    const auto store = [&](E* to, int64_t at, V first, V second) {
      if (units == 2 * kLanes) return store_two_at(to, at, first, second);
      store_at(to, at, first, units);
      if (units > kLanes) store_at(to, at + kLanes, second, units - kLanes);
    };
    const GateGradients &first = from[0], &second = from[kAtOnce - 1];
    for (int j = 0; j < Cell::kGates; ++j) {
      store(w.shared.gates_x + row, j * w.g.hidden + unit, first.x[j], second.x[j]);
      if (!kOneGateGradient<Cell>) store(w.shared.gates_r + row, j * w.g.hidden + unit, first.r[j], second.r[j]);
    }
  }

  // The cell for some units of row i, vector v of a panel. What it leaves for products waits until there is
  // enough to be stored at once. Returns the squares of the whole gradient of c, if there is one.
  FUSED_RNN_INLINE static V cell(const Walk& w, const Step& step, int64_t i, int64_t b, bool cut, int64_t unit,
                                 int64_t units, V dh, GateGradients (&held)[kAtOnce], int v, int vectors) {
    const Backward& g = w.g;
    const Shared& shared = w.shared;
    const int64_t H = g.hidden, slot = step.slot + b;
    V keep[Cell::kSaved], state[kMaxStates], next[kMaxStates], params[Cell::kParams + 1], dnext[kMaxStates];
    V dstate[kMaxStates], dparams[Cell::kParams + 1];
    auto& [dx, dr] = held[v % kAtOnce];
    load_saved<Cell>(g, w.saved(step.t, b), unit, units, keep, state);
    for (int p = 0; p < Cell::kParams; ++p)
      params[p] = load_vector(shared.params + (w.run.problem * Cell::kParams + p) * shared.unit_stride + unit);
    dnext[0] = dh;
    if (Cell::kStates > 1) {
      dnext[1] = incoming_dc(w, step, i, b, cut, unit, units);
      if (g.grad_cells) dnext[1] = dnext[1] + load_vector(at<S>(g.grad_cells, w.output(step.t, b, H) + unit), units);
    }
    Cell::advance(keep, state, next);
    if (g.trace_states) trace_states(w, step, b, unit, units, dnext);
    if (g.trace_wide && !g.saved_tangent)
      store_vector(at<S>(g.trace_wide, w.output(step.t, b, H) + unit), next[0], units);
    if (g.saved_tangent)
      tangent(w, step, b, unit, units, keep, state, params, dnext, dx, dr, dstate, dparams);
    else
      Cell::backward(keep, state, next, params, dnext, dx, dr, dstate, dparams);
    if (g.trace_x) trace_gates(w, step, b, unit, units, dx, dr);
    const int before = v % kAtOnce;  // vectors that wait already
    if (before + 1 == kAtOnce || v + 1 == vectors)
      store_gates(w, step, b, unit - before * kLanes, before * kLanes + units, held);
    if (Cell::kReadsH) store_vector(shared.dh + w.state(b, shared.unit_stride) + unit, dstate[0]);
    if (Cell::kStates > 1) store_vector(shared.dc + w.state(b, shared.unit_stride) + unit, dstate[1]);
    if (projected(g)) store_at(shared.wide_h + slot * shared.wide_stride, unit, next[0], units);
    for (int p = 0; p < Cell::kParams; ++p) {
      T* sum = shared.row_params + (w.run.problem * g.batch + b) * Cell::kParams * shared.unit_stride +
               p * shared.unit_stride + unit;
      store_vector(sum, load_vector(sum) + dparams[p]);
    }
    return Cell::kStates > 1 ? dnext[1] * dnext[1] : V(T(0));
  }

  FUSED_RNN_INLINE static void trace_states(const Walk& w, const Step& step, int64_t b, int64_t unit, int64_t units,
                                            const V* dnext) {
    const int64_t place = w.output(step.t, b, Cell::kStates * w.g.hidden) + unit;
    for (int s = 0; s < Cell::kStates; ++s)
      store_vector(at<S>(w.g.trace_states, place + s * w.g.hidden), dnext[s], units);
  }

  FUSED_RNN_INLINE static void trace_gates(const Walk& w, const Step& step, int64_t b, int64_t unit, int64_t units,
                                           const V* dx, const V* dr) {
    const Backward& g = w.g;
    for (int j = 0; j < Cell::kGates; ++j) {
      const int64_t place = w.output(step.t, b, Cell::kGates * g.hidden) + j * g.hidden + unit;
      store_vector(at<S>(g.trace_x, place), dx[j], units);
      if (g.trace_r) store_vector(at<S>(g.trace_r, place), dr[j], units);
    }
  }

  // In place of Cell::backward: how its results change when what was saved and the states' gradients do. dnext:
  // tangents of these, in and out.
  FUSED_RNN_INLINE static void tangent(const Walk& w, const Step& step, int64_t b, int64_t unit, int64_t units,
                                       const V* keep, const V* state, const V* params, V* dnext, V* dx, V* dr,
                                       V* dstate, V* dparams) {
    using D = Dual<V>;
    const Backward& g = w.g;
    const int64_t H = g.hidden;
    D keeps[Cell::kSaved], states[kMaxStates], nexts[kMaxStates], constants[Cell::kParams + 1], dnexts[kMaxStates];
    D dxs[Cell::kGates], drs[Cell::kGates], dstates[kMaxStates], to_params[Cell::kParams + 1];
    V keep_tangents[Cell::kSaved], state_tangents[kMaxStates];
    const S* tangents = at<S>(g.saved_tangent, w.saved(step.t, b) - at<S>(g.saved, 0));
    load_saved<Cell>(g, tangents, unit, units, keep_tangents, state_tangents);
    for (int k = 0; k < Cell::kSaved; ++k) keeps[k] = {keep[k], keep_tangents[k]};
    for (int s = !Cell::kReadsH; s < Cell::kStates; ++s) states[s] = {state[s], state_tangents[s]};
    for (int p = 0; p < Cell::kParams; ++p) constants[p] = {params[p], V(T(0))};
    if (g.added_wide) dnext[0] = dnext[0] + load_vector(at<S>(g.added_wide, w.output(step.t, b, H) + unit), units);
    for (int s = 0; s < Cell::kStates; ++s) {
      const int64_t place = w.output(step.t, b, Cell::kStates * H) + s * H + unit;
      dnexts[s] = {load_vector(at<S>(g.traced_states, place), units), dnext[s]};
    }
    Cell::advance(keeps, states, nexts);
    Cell::backward(keeps, states, nexts, constants, dnexts, dxs, drs, dstates, to_params);
    if (g.trace_wide) store_vector(at<S>(g.trace_wide, w.output(step.t, b, H) + unit), nexts[0].tangent, units);
    for (int j = 0; j < Cell::kGates; ++j) {
      dx[j] = dxs[j].tangent;
      dr[j] = drs[j].tangent;
    }
    for (int s = 0; s < Cell::kStates; ++s) {
      dnext[s] = dnexts[s].tangent;
      dstate[s] = dstates[s].tangent;
    }
    for (int p = 0; p < Cell::kParams; ++p) dparams[p] = to_params[p].tangent;
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
