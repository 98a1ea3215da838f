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

  // Adds the squares of the whole gradient of each state beyond h to norm[1..].
  void run(int64_t hidden, T* norm) const {
    for (int64_t j = 0; j < hidden; ++j) {
      T keep[Cell::kSaved], ss[kMaxStates] = {}, next[kMaxStates], ps[Cell::kParams + 1], dnext[kMaxStates] = {},
                            dxs[Cell::kGates], drs[Cell::kGates] = {}, ds[kMaxStates], dps[Cell::kParams + 1];
      for (int k = 0; k < Cell::kSaved; ++k) keep[k] = saved[k * hidden + j];
      if (!Cell::kProjectable) ss[0] = h[j];
      if (Cell::kStates > 1) ss[1] = c[j];
      for (int p = 0; p < Cell::kParams; ++p) ps[p] = params[p * hidden + j];
      dnext[0] = dh[j];
      if (Cell::kStates > 1) dnext[1] = dc[j];
      Cell::advance(keep, ss, next);
      Cell::backward(keep, ss, next, ps, dnext, dxs, drs, ds, dps);
      for (int g = 0; g < Cell::kGates; ++g) {
        dx[g * hidden + j] = dxs[g];
        if (!Cell::kOneGateGradient) dr[g * hidden + j] = drs[g];
      }
      if (!Cell::kProjectable) dh_prev[j] = ds[0];
      if (Cell::kStates > 1) {
        dc[j] = ds[1];
        norm[1] += dnext[1] * dnext[1];
      }
      if (wide_h) wide_h[j] = next[0];
      for (int p = 0; p < Cell::kParams; ++p) dparams[p * hidden + j] += dps[p];
    }
  }
};

template <class Cell, class S>
class BackwardPass {
  using T = Arithmetic<S>;
  static constexpr int64_t kRun = 256;  // rows that one product of a weight gradient takes at a time

  struct Memory {
    T *ih, *hh, *hr, *params;         // weights of each problem, packed
    T *gates_x, *gates_r;             // [Q, N, G*H] gradients of x and r; one array when they are equal
    T *outputs, *wide_h;              // [Q, N, P], [Q, N, H]: with a projection, dL/dh and h before it
    T* row_params;                    // [Q, B, kParams, H]: gradients of the per-unit parameters, per batch row
    T* norms;                         // [Q, chunks, kStates, T]: sums of squares
    T *dh, *dc;                       // [rows, P], [rows, H]: the running gradients
    T *dh_step, *dh_cell, *dx, *dr;   // [rows, ...] active rows only, closed up
    T *kept, *h_in, *c_in, *dh_prev;  // one row each
    int64_t* active;
    T* input_grad;                           // input_grads: [kRun, I]
    T *packed, *sum_ih, *sum_hh, *sum_bias;  // weight_grads: a packed run of rows, and the sums over all runs
    int64_t ih_size, hh_size, hr_size, block, bytes;

    Memory(const Backward& g, const Plan& plan, int64_t task, void* buffer) {
      const int64_t Q = problems(g), H = g.hidden, P = g.output_size, I = g.input_size, GH = Cell::kGates * H;
      const int64_t rows = largest_piece(g.batch, plan.row_chunks);
      ih_size = g.grad_input ? packed_size<T>(GH, I) : 0;
      hh_size = Cell::kRecurrent ? packed_size<T>(GH, P) : 0;
      hr_size = projected(g) ? packed_size<T>(P, H) : 0;
      block = largest_piece(GH, blocks(plan));
      Carver carve(buffer);
      ih = carve.take<T>(Q * ih_size);
      hh = carve.take<T>(Q * hh_size);
      hr = carve.take<T>(Q * hr_size);
      params = carve.take<T>(Q * Cell::kParams * H);
      gates_x = carve.take<T>(Q * g.rows * GH);
      gates_r = Cell::kOneGateGradient ? gates_x : carve.take<T>(Q * g.rows * GH);
      outputs = carve.take<T>(projected(g) ? Q * g.rows * P : 0);
      wide_h = carve.take<T>(projected(g) ? Q * g.rows * H : 0);
      row_params = carve.take<T>(Q * g.batch * Cell::kParams * H);
      norms = carve.take<T>(g.grad_norms ? Q * plan.row_chunks * Cell::kStates * g.steps : 0);
      const int64_t begin = (carve.used() + 63) / 64 * 64;

      // The phases run one after another and share the rest.
      const auto for_walk = [&](Carver& own) {
        dh = own.take<T>(rows * P);
        dc = own.take<T>(rows * H);
        dh_step = own.take<T>(rows * P);
        dh_cell = own.take<T>(rows * H);
        dx = own.take<T>(rows * GH);
        dr = Cell::kOneGateGradient ? dx : own.take<T>(rows * GH);
        kept = own.take<T>(Cell::kSaved * H);
        h_in = own.take<T>(P);
        c_in = own.take<T>(H);
        dh_prev = own.take<T>(rows * P);
        active = own.take<int64_t>(rows);
      };
      const auto for_input = [&](Carver& own) { input_grad = own.take<T>(kRun * I); };
      const auto for_weights = [&](Carver& own) {
        const int64_t widest = maximum(I, maximum(P, H));
        packed = own.take<T>(packed_size<T>(kRun, widest));
        sum_ih = own.take<T>(maximum(block * I, P * H));
        sum_hh = own.take<T>(block * P);
        sum_bias = own.take<T>(2 * block);
      };
      int64_t most = 0;
      const auto measured = [&](auto& layout, int64_t tasks) {
        Carver measure(nullptr);
        layout(measure);
        const int64_t stride = (measure.used() + 63) / 64 * 64;
        most = maximum(most, stride * tasks);
        Carver own(buffer ? static_cast<char*>(buffer) + begin + task * stride : nullptr);
        layout(own);
      };
      measured(for_walk, count_runs(g, plan));
      measured(for_input, count_input_pieces(g, plan));
      measured(for_weights, count_weight_blocks(g, plan));
      bytes = begin + most;
    }
  };

  static int64_t blocks(const Plan& plan) { return plan.threads; }

 public:
  static int64_t bytes(const Backward& g, const Plan& plan) { return Memory(g, plan, 0, nullptr).bytes; }

  static int64_t count_problems(const Backward& g, const Plan&) { return problems(g); }

  static void pack_weights(const Backward& g, const Plan& plan, void* buffer, int64_t problem) {
    const Memory mem(g, plan, 0, buffer);
    const int64_t m = problem / g.directions, H = g.hidden, I = g.input_size, P = g.output_size, GH = Cell::kGates * H;
    const Weights& w = g.weights[problem % g.directions];
    const auto pack_plain = [](T* to, const S* from, int64_t depth, int64_t columns) {
      pack(to, depth, columns, [&](int64_t k, int64_t n) { return load(from[k * columns + n]); });
    };
    if (g.grad_input) pack_plain(mem.ih + problem * mem.ih_size, at<S>(w.ih, m * GH * I), GH, I);
    if (Cell::kRecurrent) pack_plain(mem.hh + problem * mem.hh_size, at<S>(w.hh, m * GH * P), GH, P);
    if (projected(g)) pack_plain(mem.hr + problem * mem.hr_size, at<S>(w.hr, m * P * H), P, H);
    load_row(mem.params + problem * Cell::kParams * H, at<S>(w.params, m * Cell::kParams * H), Cell::kParams * H);
  }

  static int64_t count_runs(const Backward& g, const Plan& plan) { return problems(g) * plan.row_chunks; }

  static void walk(const Backward& g, const Plan& plan, void* buffer, int64_t task) {
    const Memory mem(g, plan, task, buffer);
    const int64_t problem = task / plan.row_chunks, chunk = task % plan.row_chunks;
    const int64_t m = problem / g.directions, d = problem % g.directions;
    const int64_t first = cut(g.batch, plan.row_chunks, chunk), last = cut(g.batch, plan.row_chunks, chunk + 1);
    const int64_t H = g.hidden, P = g.output_size;

    for (int64_t b = first; b < last; ++b) {
      load_row(mem.dh + (b - first) * P, at<S>(g.grad_h_n, (problem * g.batch + b) * P), P);
      if (Cell::kStates > 1) load_row(mem.dc + (b - first) * H, at<S>(g.grad_c_n, (problem * g.batch + b) * H), H);
      zero_row(mem.row_params + (problem * g.batch + b) * Cell::kParams * H, Cell::kParams * H);
    }
    for (int64_t step = 0; step < g.steps; ++step) {
      const int64_t t = d == 0 ? g.steps - 1 - step : step;
      int64_t active = 0;
      for (int64_t b = first; b < last; ++b)
        if (is_active(g, m, t, b)) mem.active[active++] = b;
      T norm[kMaxStates] = {};
      if (active > 0) compute_step(g, mem, problem, t, first, active, norm);
      if (g.grad_norms)
        for (int s = 0; s < Cell::kStates; ++s) mem.norms[(task * Cell::kStates + s) * g.steps + t] = norm[s];
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
    const Memory mem(g, plan, task, buffer);
    const int64_t m = task / plan.threads, piece = task % plan.threads;
    const int64_t I = g.input_size, GH = Cell::kGates * g.hidden;
    const int64_t first = cut(g.rows, plan.threads, piece), last = cut(g.rows, plan.threads, piece + 1);
    zero_row(at<S>(g.grad_input, (m * g.rows + first) * I), (last - first) * I);
    for_each_run(g, m, first, last, 0, g.batch, [&](int64_t row, int64_t count) {
      zero_row(mem.input_grad, count * I);
      for (int64_t d = 0; d < g.directions; ++d) {
        const int64_t problem = m * g.directions + d;
        multiply(count, I, GH, mem.gates_x + (problem * g.rows + row) * GH, GH, 1, mem.ih + problem * mem.ih_size,
                 mem.input_grad, I);
      }
      store_row(at<S>(g.grad_input, (m * g.rows + row) * I), mem.input_grad, count * I);
    });
  }

  // For every problem and group: blocks of gate rows, and one more task for the projection and the per-unit parameters.
  static int64_t count_weight_blocks(const Backward& g, const Plan& plan) {
    bool wanted = false;
    for (int64_t d = 0; d < g.directions; ++d) {
      const WeightGradients& w = g.grads[d];
      wanted = wanted || w.ih || w.hh || w.bias_ih || w.bias_hh || w.hr || w.params;
    }
    return wanted ? problems(g) * g.weight_groups * (blocks(plan) + 1) : 0;
  }

  static void weight_grads(const Backward& g, const Plan& plan, void* buffer, int64_t task) {
    const Memory mem(g, plan, task, buffer);
    const int64_t part = task % (blocks(plan) + 1), group = task / (blocks(plan) + 1) % g.weight_groups;
    const int64_t problem = task / (blocks(plan) + 1) / g.weight_groups;
    if (part < blocks(plan))
      gate_weight_grads(g, plan, mem, problem, group, part);
    else
      other_weight_grads(g, mem, problem, group);
  }

  static int64_t count_norms(const Backward& g, const Plan&) { return g.grad_norms ? problems(g) : 0; }

  static void norms(const Backward& g, const Plan& plan, void* buffer, int64_t problem) {
    const Memory mem(g, plan, 0, buffer);
    const int64_t entries = Cell::kStates * g.steps;
    T* out = at<T>(g.grad_norms, problem * entries);
    for (int64_t i = 0; i < entries; ++i) {
      T sum = 0;
      for (int64_t chunk = 0; chunk < plan.row_chunks; ++chunk)
        sum += mem.norms[(problem * plan.row_chunks + chunk) * entries + i];
      out[i] = square_root(sum);
    }
  }

 private:
  static float square_root(float x) { return ::sqrtf(x); }
  static double square_root(double x) { return ::sqrt(x); }

  static void compute_step(const Backward& g, const Memory& mem, int64_t problem, int64_t t, int64_t first,
                           int64_t active, T* norm) {
    const int64_t m = problem / g.directions, d = problem % g.directions;
    const int64_t H = g.hidden, P = g.output_size, GH = Cell::kGates * H;

    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i], row = row_of(g, t, b);
      const S* grad_output = at<S>(g.grad_output, ((m * g.rows + row) * g.directions + d) * P);
      const S* grad_cells = at<S>(g.grad_cells, ((m * g.rows + row) * g.directions + d) * H);
      const T* dh = mem.dh + (b - first) * P;
      T* dh_step = mem.dh_step + i * P;
      for (int64_t j = 0; j < P; ++j) {
        dh_step[j] = dh[j] + (grad_output ? load(grad_output[j]) : T(0));
        norm[0] += dh_step[j] * dh_step[j];
      }
      if (Cell::kStates > 1 && grad_cells)
        for (int64_t j = 0; j < H; ++j) mem.dc[(b - first) * H + j] += load(grad_cells[j]);
    }
    const T* dh_cell = mem.dh_step;
    if (projected(g)) {
      zero_row(mem.dh_cell, active * H);
      multiply(active, H, P, mem.dh_step, P, 1, mem.hr + problem * mem.hr_size, mem.dh_cell, H);
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
      step.params = mem.params + problem * Cell::kParams * H;
      step.dh = dh_cell + i * H;
      step.dc = mem.dc + (b - first) * H;
      step.dx = mem.dx + i * GH;
      step.dr = mem.dr + i * GH;
      step.dh_prev = mem.dh_prev + i * P;
      step.wide_h = projected(g) ? mem.wide_h + row * H : nullptr;
      step.dparams = mem.row_params + (problem * g.batch + b) * Cell::kParams * H;
      if (Cell::kProjectable) zero_row(step.dh_prev, P);
      step.run(H, norm);
      memcpy(mem.gates_x + row * GH, step.dx, sizeof(T) * GH);
      if (!Cell::kOneGateGradient) memcpy(mem.gates_r + row * GH, step.dr, sizeof(T) * GH);
      if (projected(g)) memcpy(mem.outputs + row * P, mem.dh_step + i * P, sizeof(T) * P);
    }
    if (Cell::kRecurrent) multiply(active, P, GH, mem.dr, GH, 1, mem.hh + problem * mem.hh_size, mem.dh_prev, P);
    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i];
      if (is_reset(g, m, d, t, b)) {
        zero_row(mem.dh_prev + i * P, P);
        if (Cell::kStates > 1) zero_row(mem.dc + (b - first) * H, H);
      }
      memcpy(mem.dh + (b - first) * P, mem.dh_prev + i * P, sizeof(T) * P);
    }
  }

  // Calls f(row, count) for the runs of consecutive active rows in [first, last) whose batch index is in [b0, b1), at
  // most kRun at a time. Padding is never read: it may hold anything, NaN included.
  template <class F>
  static void for_each_run(const Backward& g, int64_t m, int64_t first, int64_t last, int64_t b0, int64_t b1, F f) {
    const bool every_row = b0 == 0 && b1 == g.batch && (g.offsets || !g.lengths);
    const auto takes = [&](int64_t row) {
      const int64_t t = row / g.batch, b = row % g.batch;
      return b0 <= b && b < b1 && is_active(g, m, t, b);
    };
    for (int64_t row = first; row < last;) {
      if (!every_row && !takes(row)) {
        ++row;
        continue;
      }
      const int64_t end = minimum(last, row + kRun);
      int64_t stop = every_row ? end : row + 1;
      while (stop < end && takes(stop)) ++stop;
      f(row, stop - row);
      row = stop;
    }
  }

  static void gate_weight_grads(const Backward& g, const Plan& plan, const Memory& mem, int64_t problem, int64_t group,
                                int64_t part) {
    const int64_t m = problem / g.directions, H = g.hidden, P = g.output_size, I = g.input_size, GH = Cell::kGates * H;
    const int64_t j0 = cut(GH, blocks(plan), part), height = cut(GH, blocks(plan), part + 1) - j0;
    const WeightGradients& out = g.grads[problem % g.directions];
    T* sum_bias_hh = mem.sum_bias + mem.block;
    zero_row(mem.sum_ih, height * I);
    zero_row(mem.sum_hh, height * P);
    zero_row(mem.sum_bias, 2 * mem.block);
    for_each_group_run(g, m, group, [&](int64_t row, int64_t count) {
      const T* dx = mem.gates_x + (problem * g.rows + row) * GH + j0;
      const T* dr = mem.gates_r + (problem * g.rows + row) * GH + j0;
      if (out.ih) {
        const S* input = at<S>(g.input, m * g.input_member_stride + row * I);
        pack(mem.packed, count, I, [&](int64_t k, int64_t n) { return load(input[k * I + n]); });
        multiply(height, I, count, dx, 1, GH, mem.packed, mem.sum_ih, I);
      }
      if (out.hh) {
        const S* h = at<S>(g.saved, (problem * g.rows + row) * g.saved_width) + entering_h<Cell>(g);
        pack(mem.packed, count, P, [&](int64_t k, int64_t n) { return load(h[k * g.saved_width + n]); });
        multiply(height, P, count, dr, 1, GH, mem.packed, mem.sum_hh, P);
      }
      for (int64_t k = 0; k < count; ++k)
        for (int64_t j = 0; j < height; ++j) {
          mem.sum_bias[j] += dx[k * GH + j];
          sum_bias_hh[j] += dr[k * GH + j];
        }
    });
    const int64_t first = (m * g.weight_groups + group) * GH + j0;
    if (out.ih) store_row(at<S>(out.ih, first * I), mem.sum_ih, height * I);
    if (out.hh) store_row(at<S>(out.hh, first * P), mem.sum_hh, height * P);
    if (out.bias_ih) store_row(at<S>(out.bias_ih, first), mem.sum_bias, height);
    if (out.bias_hh) store_row(at<S>(out.bias_hh, first), sum_bias_hh, height);
  }

  static void other_weight_grads(const Backward& g, const Memory& mem, int64_t problem, int64_t group) {
    const int64_t m = problem / g.directions, H = g.hidden, P = g.output_size;
    const int64_t K = g.weight_groups, first = m * K + group;
    const WeightGradients& out = g.grads[problem % g.directions];
    if (out.hr) {
      zero_row(mem.sum_ih, P * H);
      for_each_group_run(g, m, group, [&](int64_t row, int64_t count) {
        const T* wide_h = mem.wide_h + (problem * g.rows + row) * H;
        pack(mem.packed, count, H, [&](int64_t k, int64_t n) { return wide_h[k * H + n]; });
        multiply(P, H, count, mem.outputs + (problem * g.rows + row) * P, 1, P, mem.packed, mem.sum_ih, H);
      });
      store_row(at<S>(out.hr, first * P * H), mem.sum_ih, P * H);
    }
    if (out.params) {
      const int64_t n = Cell::kParams * H;
      for (int64_t j = 0; j < n; ++j) {
        T sum = 0;
        for (int64_t b = cut(g.batch, K, group); b < cut(g.batch, K, group + 1); ++b)
          sum += mem.row_params[(problem * g.batch + b) * n + j];
        store(at<S>(out.params, first * n)[j], sum);
      }
    }
  }

  template <class F>
  static void for_each_group_run(const Backward& g, int64_t m, int64_t group, F f) {
    for_each_run(g, m, 0, g.rows, cut(g.batch, g.weight_groups, group), cut(g.batch, g.weight_groups, group + 1), f);
  }
};

}  // namespace
}  // namespace fused_rnn
