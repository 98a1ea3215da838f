// The backward pass, in three phases:
//   walk           back through time: gradients of the gates at every step, of the initial states, of the norms
//   input_grads    dL/dx from the gates' gradients, any rows side by side
//   weight_grads   dL/dW from the gates' gradients, any gate rows side by side
// Each sum has one fixed order, whatever the number of threads.
#pragma once
#include "gemm.h"
#include "workspace.h"

namespace fused_rnn {
namespace {

// One row of one step. dh, dc: in, the gradients that reach h_next and c_next; dh_prev, dc: out, those of the states
// that entered. saved, dx, dr: [.., H]. wide_h: h before any projection, as the forward pass had it.
template <class Cell, class T>
struct StepBackward {
  const T *saved, *h, *c, *params, *dh;
  T *dc, *dx, *dr, *dh_prev, *wide_h, *dparams;

  // Adds the squares of the whole gradient of the second state to `norm`, if there is one to add to.
  void run(int64_t hidden, T* norm) const {
    for_lanes<T>(hidden, [&](auto lanes, int64_t j) {
      using V = decltype(lanes);
      V keep[Cell::kSaved], ss[kMaxStates], next[kMaxStates], ps[Cell::kParams + 1], dnext[kMaxStates];
      V dxs[Cell::kGates], drs[Cell::kGates], ds[kMaxStates], dps[Cell::kParams + 1];
      for (int k = 0; k < Cell::kSaved; ++k) keep[k] = load_lanes<V>(saved + k * hidden + j);
      if (!Cell::kProjectable) ss[0] = load_lanes<V>(h + j);
      if (Cell::kStates > 1) ss[1] = load_lanes<V>(c + j);
      for (int p = 0; p < Cell::kParams; ++p) ps[p] = load_lanes<V>(params + p * hidden + j);
      dnext[0] = load_lanes<V>(dh + j);
      if (Cell::kStates > 1) dnext[1] = load_lanes<V>(dc + j);
      Cell::advance(keep, ss, next);
      Cell::backward(keep, ss, next, ps, dnext, dxs, drs, ds, dps);
      for (int g = 0; g < Cell::kGates; ++g) {
        store_lanes(dx + g * hidden + j, dxs[g]);
        if (!Cell::kOneGateGradient) store_lanes(dr + g * hidden + j, drs[g]);
      }
      if (!Cell::kProjectable) store_lanes(dh_prev + j, ds[0]);
      if (Cell::kStates > 1) {
        store_lanes(dc + j, ds[1]);
        if (norm) *norm += sum_of(dnext[1] * dnext[1]);
      }
      if (wide_h) store_lanes(wide_h + j, next[0]);
      for (int p = 0; p < Cell::kParams; ++p)
        store_lanes(dparams + p * hidden + j, load_lanes<V>(dparams + p * hidden + j) + dps[p]);
    });
  }
};

template <class Cell, class S>
class BackwardPass {
  using T = Arithmetic<S>;
  static constexpr int64_t kRun = 256;  // rows that one product of a weight gradient takes at a time

  // What the phases hand on: packed weights of each problem and the results of the walk.
  struct Shared {
    T *ih, *hh, *hr, *params;
    T *gates_x, *gates_r;  // [Q, N, G*H] gradients of x and r; one array when they are equal
    T *outputs, *wide_h;   // [Q, N, P], [Q, N, H]: with a projection, dL/dh and h before it
    T* row_params;         // [Q, B, kParams, H]: gradients of the per-unit parameters, per batch row
    T* norms;              // [Q, B, kStates, T]: each row's sums of squares
    int64_t ih_size, hh_size, hr_size;

    Shared(const Backward& g, const Plan&, Carver& carve) {
      const int64_t Q = problems(g), H = g.hidden, P = g.output_size, GH = Cell::kGates * H;
      ih_size = g.grad_input ? packed_size<T>(GH, g.input_size) : 0;
      hh_size = Cell::kRecurrent ? packed_size<T>(GH, P) : 0;
      hr_size = projected(g) ? packed_size<T>(P, H) : 0;
      ih = carve.take<T>(Q * ih_size);
      hh = carve.take<T>(Q * hh_size);
      hr = carve.take<T>(Q * hr_size);
      params = carve.take<T>(Q * Cell::kParams * H);
      gates_x = carve.take<T>(Q * g.rows * GH);
      gates_r = Cell::kOneGateGradient ? gates_x : carve.take<T>(Q * g.rows * GH);
      outputs = carve.take<T>(projected(g) ? Q * g.rows * P : 0);
      wide_h = carve.take<T>(projected(g) ? Q * g.rows * H : 0);
      row_params = carve.take<T>(Q * g.batch * Cell::kParams * H);
      norms = carve.take<T>(g.grad_norms ? Q * g.batch * Cell::kStates * g.steps : 0);
    }
  };

  // One walk's own. `rows` is the most that a run has; active rows are closed up.
  struct WalkScratch {
    T *dh, *dc;                      // [rows, P], [rows, H]: the running gradients
    T *dh_step, *dh_cell, *dh_prev;  // [rows, P], [rows, H], [rows, P]
    T *dx, *dr;                      // [rows, G*H]
    T *kept, *h_in, *c_in;           // one row of `saved`
    int64_t* active;                 // [rows]

    WalkScratch(const Backward& g, const Plan& plan, Carver& carve) {
      const int64_t rows = largest_piece(g.batch, plan.row_chunks);
      const int64_t H = g.hidden, P = g.output_size, GH = Cell::kGates * H;
      dh = carve.take<T>(rows * P);
      dc = carve.take<T>(rows * H);
      dh_step = carve.take<T>(rows * P);
      dh_cell = carve.take<T>(rows * H);
      dh_prev = carve.take<T>(rows * P);
      dx = carve.take<T>(rows * GH);
      dr = Cell::kOneGateGradient ? dx : carve.take<T>(rows * GH);
      kept = carve.take<T>(Cell::kSaved * H);
      h_in = carve.take<T>(P);
      c_in = carve.take<T>(H);
      active = carve.take<int64_t>(rows);
    }
  };

  // The rows that a product takes, and what they hold: [kRun], [kRun, width].
  struct Gathered {
    int64_t* rows;
    T* values;

    Gathered(Carver& carve, int64_t width) : rows(carve.take<int64_t>(kRun)), values(carve.take<T>(kRun * width)) {}

    // values[k, 0 .. width) = array[rows[k], 0 .. width), where the rows of `array` are `stride` apart.
    void take(int64_t count, const T* array, int64_t stride, int64_t width) const {
      for (int64_t k = 0; k < count; ++k) memcpy(values + k * width, array + rows[k] * stride, sizeof(T) * width);
    }
  };

  struct InputScratch {
    Gathered gathered;
    T* sum;  // [kRun, I]

    InputScratch(const Backward& g, const Plan&, Carver& carve)
        : gathered(carve, Cell::kGates * g.hidden), sum(carve.take<T>(kRun * g.input_size)) {}
  };

  struct WeightScratch {
    int64_t block;  // gate rows of one task
    Gathered gathered;
    T* packed;                      // [kRun, ...]: the other factor
    T *sum_ih, *sum_hh, *sum_bias;  // over all runs: [block, I] or [P, H], [block, P], [2, block]

    WeightScratch(const Backward& g, const Plan& plan, Carver& carve)
        : block(largest_piece(Cell::kGates * g.hidden, blocks(plan))), gathered(carve, maximum(block, g.output_size)) {
      const int64_t H = g.hidden, P = g.output_size, I = g.input_size;
      packed = carve.take<T>(packed_size<T>(kRun, maximum(I, maximum(P, H))));
      sum_ih = carve.take<T>(maximum(block * I, projected(g) ? P * H : 0));
      sum_hh = carve.take<T>(block * P);
      sum_bias = carve.take<T>(2 * block);
    }
  };

  static int64_t blocks(const Plan& plan) { return plan.threads; }

  template <class Scratch>
  static Scratch scratch_of(const Backward& g, const Plan& plan, void* buffer, int64_t task) {
    return part_at<Scratch>(buffer, size_of<Shared>(g, plan) + task * size_of<Scratch>(g, plan), g, plan);
  }

 public:
  // The phases run one after another, so their scratch takes turns.
  static int64_t bytes(const Backward& g, const Plan& plan) {
    const int64_t walks = count_runs(g, plan) * size_of<WalkScratch>(g, plan);
    const int64_t inputs = count_input_pieces(g, plan) * size_of<InputScratch>(g, plan);
    const int64_t weights = count_weight_blocks(g, plan) * size_of<WeightScratch>(g, plan);
    return size_of<Shared>(g, plan) + maximum(walks, maximum(inputs, weights));
  }

  static int64_t count_problems(const Backward& g, const Plan&) { return problems(g); }

  static void pack_weights(const Backward& g, const Plan& plan, void* buffer, int64_t problem) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const int64_t m = problem / g.directions, H = g.hidden, I = g.input_size, P = g.output_size, GH = Cell::kGates * H;
    const Weights& w = g.weights[problem % g.directions];
    const auto pack_plain = [](T* to, const S* from, int64_t depth, int64_t columns) {
      pack(to, depth, columns, [&](int64_t k, int64_t n) { return load(from[k * columns + n]); });
    };
    if (g.grad_input) pack_plain(shared.ih + problem * shared.ih_size, at<S>(w.ih, m * GH * I), GH, I);
    if (Cell::kRecurrent) pack_plain(shared.hh + problem * shared.hh_size, at<S>(w.hh, m * GH * P), GH, P);
    if (projected(g)) pack_plain(shared.hr + problem * shared.hr_size, at<S>(w.hr, m * P * H), P, H);
    load_row(shared.params + problem * Cell::kParams * H, at<S>(w.params, m * Cell::kParams * H), Cell::kParams * H);
  }

  static int64_t count_walks(const Backward& g, const Plan& plan) { return count_runs(g, plan); }

  static void walk(const Backward& g, const Plan& plan, void* buffer, int64_t task) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const WalkScratch mem = scratch_of<WalkScratch>(g, plan, buffer, task);
    const auto [problem, m, d, first, last] = run_of(g, plan, task);
    const int64_t H = g.hidden, P = g.output_size;

    for (int64_t b = first; b < last; ++b) {
      load_row(mem.dh + (b - first) * P, at<S>(g.grad_h_n, (problem * g.batch + b) * P), P);
      if (Cell::kStates > 1) load_row(mem.dc + (b - first) * H, at<S>(g.grad_c_n, (problem * g.batch + b) * H), H);
      zero_row(shared.row_params + (problem * g.batch + b) * Cell::kParams * H, Cell::kParams * H);
    }
    for (int64_t step = 0; step < g.steps; ++step) {
      const int64_t t = d == 0 ? g.steps - 1 - step : step;
      int64_t active = 0;
      for (int64_t b = first; b < last; ++b)
        if (is_active(g, m, t, b)) mem.active[active++] = b;
      if (active > 0) compute_step(g, shared, mem, problem, t, first, active);
    }
    for (int64_t b = first; b < last; ++b) {
      store_row(at<S>(g.grad_h0, (problem * g.batch + b) * P), mem.dh + (b - first) * P, P);
      if (Cell::kStates > 1) store_row(at<S>(g.grad_c0, (problem * g.batch + b) * H), mem.dc + (b - first) * H, H);
    }
  }

  static int64_t count_input_pieces(const Backward& g, const Plan& plan) {
    return g.grad_input ? g.members * plan.threads : 0;
  }

  static void input_grads(const Backward& g, const Plan& plan, void* buffer, int64_t task) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const InputScratch mem = scratch_of<InputScratch>(g, plan, buffer, task);
    const int64_t m = task / plan.threads, piece = task % plan.threads;
    const int64_t I = g.input_size, GH = Cell::kGates * g.hidden;
    S* grad_input = at<S>(g.grad_input, m * g.rows * I);
    // The longer of the two dimensions is cut into pieces.
    const bool by_step = g.steps >= g.batch;
    const int64_t n = by_step ? g.steps : g.batch;
    const int64_t first = cut(n, plan.threads, piece), last = cut(n, plan.threads, piece + 1);
    const int64_t t0 = by_step ? first : 0, t1 = by_step ? last : g.steps;
    const int64_t b0 = by_step ? 0 : first, b1 = by_step ? g.batch : last;
    for (int64_t t = t0; t < t1 && g.lengths && !g.offsets; ++t)
      for (int64_t b = b0; b < b1; ++b)
        if (!is_active(g, m, t, b)) zero_row(grad_input + row_of(g, t, b) * I, I);  // padding gets no gradient
    for_each_run(g, mem.gathered, m, t0, t1, b0, b1, [&](int64_t count) {
      zero_row(mem.sum, count * I);
      for (int64_t d = 0; d < g.directions; ++d) {
        const int64_t problem = m * g.directions + d;
        mem.gathered.take(count, shared.gates_x + problem * g.rows * GH, GH, GH);
        multiply(count, I, GH, mem.gathered.values, GH, 1, shared.ih + problem * shared.ih_size, mem.sum, I);
      }
      for (int64_t k = 0; k < count; ++k) store_row(grad_input + mem.gathered.rows[k] * I, mem.sum + k * I, I);
    });
  }

  // For every problem: blocks of gate rows, and one more task for the projection and the per-unit parameters.
  static int64_t count_weight_blocks(const Backward& g, const Plan& plan) {
    bool wanted = false;
    for (int64_t d = 0; d < g.directions; ++d) {
      const WeightGradients& w = g.grads[d];
      wanted = wanted || w.ih || w.hh || w.bias_ih || w.bias_hh || w.hr || w.params;
    }
    return wanted ? problems(g) * (blocks(plan) + 1) : 0;
  }

  static void weight_grads(const Backward& g, const Plan& plan, void* buffer, int64_t task) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const WeightScratch mem = scratch_of<WeightScratch>(g, plan, buffer, task);
    const int64_t problem = task / (blocks(plan) + 1), part = task % (blocks(plan) + 1);
    for (int64_t group = 0; group < g.weight_groups; ++group) {
      if (part < blocks(plan))
        gate_weight_grads(g, plan, shared, mem, problem, group, part);
      else
        other_weight_grads(g, shared, mem, problem, group);
    }
  }

  static int64_t count_norms(const Backward& g, const Plan&) { return g.grad_norms ? problems(g) : 0; }

  static void norms(const Backward& g, const Plan& plan, void* buffer, int64_t problem) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const int64_t entries = Cell::kStates * g.steps;
    T* out = at<T>(g.grad_norms, problem * entries);
    for (int64_t i = 0; i < entries; ++i) {
      T sum = 0;
      for (int64_t b = 0; b < g.batch; ++b)
        if (is_active(g, problem / g.directions, i % g.steps, b))
          sum += shared.norms[(problem * g.batch + b) * entries + i];
      out[i] = square_root(sum);
    }
  }

 private:
  static float square_root(float x) { return ::sqrtf(x); }
  static double square_root(double x) { return ::sqrt(x); }

  static void compute_step(const Backward& g, const Shared& shared, const WalkScratch& mem, int64_t problem, int64_t t,
                           int64_t first, int64_t active) {
    const int64_t m = problem / g.directions, d = problem % g.directions;
    const int64_t H = g.hidden, P = g.output_size, GH = Cell::kGates * H;

    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i], row = row_of(g, t, b);
      const S* grad_output = at<S>(g.grad_output, ((m * g.rows + row) * g.directions + d) * P);
      const S* grad_cells = at<S>(g.grad_cells, ((m * g.rows + row) * g.directions + d) * H);
      const T* dh = mem.dh + (b - first) * P;
      T* dh_step = mem.dh_step + i * P;
      for (int64_t j = 0; j < P; ++j) dh_step[j] = dh[j] + (grad_output ? load(grad_output[j]) : T(0));
      if (Cell::kStates > 1 && grad_cells)
        for (int64_t j = 0; j < H; ++j) mem.dc[(b - first) * H + j] += load(grad_cells[j]);
    }
    const T* dh_cell = mem.dh_step;
    if (projected(g)) {
      zero_row(mem.dh_cell, active * H);
      multiply(active, H, P, mem.dh_step, P, 1, shared.hr + problem * shared.hr_size, mem.dh_cell, H, g.batch == 1);
      dh_cell = mem.dh_cell;
    }
    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i], row = problem * g.rows + row_of(g, t, b);
      const S* saved = at<S>(g.saved, row * g.saved_width);
      load_row(mem.kept, saved, Cell::kSaved * H);
      load_row(mem.h_in, saved + entering_h<Cell>(g), P);
      if (Cell::kStates > 1) load_row(mem.c_in, saved + entering_c<Cell>(g), H);
      StepBackward<Cell, T> step;
      step.saved = mem.kept;
      step.h = mem.h_in;
      step.c = mem.c_in;
      step.params = shared.params + problem * Cell::kParams * H;
      step.dh = dh_cell + i * H;
      step.dc = mem.dc + (b - first) * H;
      step.dx = mem.dx + i * GH;
      step.dr = mem.dr + i * GH;
      step.dh_prev = mem.dh_prev + i * P;
      step.wide_h = projected(g) ? shared.wide_h + row * H : nullptr;
      step.dparams = shared.row_params + (problem * g.batch + b) * Cell::kParams * H;
      if (Cell::kProjectable) zero_row(step.dh_prev, P);
      T norm[kMaxStates] = {};
      step.run(H, g.grad_norms ? norm + 1 : nullptr);
      if (g.grad_norms) {
        for (int64_t j = 0; j < P; ++j) norm[0] += mem.dh_step[i * P + j] * mem.dh_step[i * P + j];
        for (int s = 0; s < Cell::kStates; ++s)
          shared.norms[((problem * g.batch + b) * Cell::kStates + s) * g.steps + t] = norm[s];
      }
      memcpy(shared.gates_x + row * GH, step.dx, sizeof(T) * GH);
      if (!Cell::kOneGateGradient) memcpy(shared.gates_r + row * GH, step.dr, sizeof(T) * GH);
      if (projected(g)) memcpy(shared.outputs + row * P, mem.dh_step + i * P, sizeof(T) * P);
    }
    if (Cell::kRecurrent)
      multiply(active, P, GH, mem.dr, GH, 1, shared.hh + problem * shared.hh_size, mem.dh_prev, P, g.batch == 1);
    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i];
      if (is_reset(g, m, d, t, b)) {
        zero_row(mem.dh_prev + i * P, P);
        if (Cell::kStates > 1) zero_row(mem.dc + (b - first) * H, H);
      }
      memcpy(mem.dh + (b - first) * P, mem.dh_prev + i * P, sizeof(T) * P);
    }
  }

  // Calls f(count) with gathered.rows[0 .. count), the active rows of steps [t0, t1) and batch rows [b0, b1) in order,
  // kRun at a time. Padding is never read: it may hold anything, NaN included.
  template <class F>
  static void for_each_run(const Backward& g, const Gathered& gathered, int64_t m, int64_t t0, int64_t t1, int64_t b0,
                           int64_t b1, F f) {
    int64_t count = 0;
    for (int64_t t = t0; t < t1; ++t)
      for (int64_t b = b0; b < b1; ++b) {
        if (!is_active(g, m, t, b)) continue;
        gathered.rows[count++] = row_of(g, t, b);
        if (count == kRun) {
          f(count);
          count = 0;
        }
      }
    if (count > 0) f(count);
  }

  static void gate_weight_grads(const Backward& g, const Plan& plan, const Shared& shared, const WeightScratch& mem,
                                int64_t problem, int64_t group, int64_t part) {
    const int64_t m = problem / g.directions, H = g.hidden, P = g.output_size, I = g.input_size, GH = Cell::kGates * H;
    const int64_t j0 = cut(GH, blocks(plan), part), height = cut(GH, blocks(plan), part + 1) - j0;
    const WeightGradients& out = g.grads[problem % g.directions];
    T* sum_bias_hh = mem.sum_bias + mem.block;
    zero_row(mem.sum_ih, height * I);
    zero_row(mem.sum_hh, height * P);
    zero_row(mem.sum_bias, 2 * mem.block);
    for_each_group_run(g, mem.gathered, m, group, [&](int64_t count) {
      mem.gathered.take(count, shared.gates_x + problem * g.rows * GH + j0, GH, height);
      if (out.ih) {
        const S* input = at<S>(g.input, m * g.input_member_stride);
        pack(mem.packed, count, I, [&](int64_t k, int64_t n) { return load(input[mem.gathered.rows[k] * I + n]); });
        multiply(height, I, count, mem.gathered.values, 1, height, mem.packed, mem.sum_ih, I);
      }
      add_rows(count, height, mem.gathered.values, mem.sum_bias);
      if (!Cell::kOneGateGradient) mem.gathered.take(count, shared.gates_r + problem * g.rows * GH + j0, GH, height);
      if (out.hh) {
        const S* h = at<S>(g.saved, problem * g.rows * g.saved_width) + entering_h<Cell>(g);
        pack(mem.packed, count, P,
             [&](int64_t k, int64_t n) { return load(h[mem.gathered.rows[k] * g.saved_width + n]); });
        multiply(height, P, count, mem.gathered.values, 1, height, mem.packed, mem.sum_hh, P);
      }
      add_rows(count, height, mem.gathered.values, sum_bias_hh);
    });
    const int64_t first = (m * g.weight_groups + group) * GH + j0;
    if (out.ih) store_row(at<S>(out.ih, first * I), mem.sum_ih, height * I);
    if (out.hh) store_row(at<S>(out.hh, first * P), mem.sum_hh, height * P);
    if (out.bias_ih) store_row(at<S>(out.bias_ih, first), mem.sum_bias, height);
    if (out.bias_hh) store_row(at<S>(out.bias_hh, first), sum_bias_hh, height);
  }

  static void other_weight_grads(const Backward& g, const Shared& shared, const WeightScratch& mem, int64_t problem,
                                 int64_t group) {
    const int64_t m = problem / g.directions, H = g.hidden, P = g.output_size;
    const int64_t K = g.weight_groups, first = m * K + group;
    const WeightGradients& out = g.grads[problem % g.directions];
    if (out.hr) {
      zero_row(mem.sum_ih, P * H);
      for_each_group_run(g, mem.gathered, m, group, [&](int64_t count) {
        const T* wide_h = shared.wide_h + problem * g.rows * H;
        pack(mem.packed, count, H, [&](int64_t k, int64_t n) { return wide_h[mem.gathered.rows[k] * H + n]; });
        mem.gathered.take(count, shared.outputs + problem * g.rows * P, P, P);
        multiply(P, H, count, mem.gathered.values, 1, P, mem.packed, mem.sum_ih, H);
      });
      store_row(at<S>(out.hr, first * P * H), mem.sum_ih, P * H);
    }
    if (out.params) {
      const int64_t n = Cell::kParams * H;
      for (int64_t j = 0; j < n; ++j) {
        T sum = 0;
        for (int64_t b = cut(g.batch, K, group); b < cut(g.batch, K, group + 1); ++b)
          sum += shared.row_params[(problem * g.batch + b) * n + j];
        store(at<S>(out.params, first * n)[j], sum);
      }
    }
  }

  static void add_rows(int64_t count, int64_t width, const T* rows, T* sum) {
    for (int64_t k = 0; k < count; ++k)
      for (int64_t j = 0; j < width; ++j) sum[j] += rows[k * width + j];
  }

  template <class F>
  static void for_each_group_run(const Backward& g, const Gathered& gathered, int64_t m, int64_t group, F f) {
    const int64_t K = g.weight_groups;
    for_each_run(g, gathered, m, 0, g.steps, cut(g.batch, K, group), cut(g.batch, K, group + 1), f);
  }
};

}  // namespace
}  // namespace fused_rnn
