// The forward pass: each task walks a run of batch rows of one problem through all steps.
#pragma once
#include "gemm.h"
#include "workspace.h"

namespace fused_rnn {
namespace {

// One row of one step. x, r: [G, H]; h, c: the states that enter; saved: [kSaved, H].
template <class Cell, class T>
void step_forward(int64_t hidden, const T* x, const T* r, const T* h, const T* c, const T* params, T* h_next, T* c_next,
                  T* saved) {
  for_lanes<T>(hidden, [&](auto lanes, int64_t j) {
    using V = decltype(lanes);
    V xs[Cell::kGates], rs[Cell::kGates], ps[Cell::kParams + 1], ss[kMaxStates], next[kMaxStates], keep[Cell::kSaved];
    for (int g = 0; g < Cell::kGates; ++g) {
      xs[g] = load_lanes<V>(x + g * hidden + j);
      if (Cell::kRecurrent) rs[g] = load_lanes<V>(r + g * hidden + j);
    }
    for (int p = 0; p < Cell::kParams; ++p) ps[p] = load_lanes<V>(params + p * hidden + j);
    if (!Cell::kProjectable)
      ss[0] = load_lanes<V>(h + j);  // a projected h is narrower, and such a cell does not read it
    if (Cell::kStates > 1) ss[1] = load_lanes<V>(c + j);
    Cell::forward(xs, rs, ss, ps, next, keep);
    store_lanes(h_next + j, next[0]);
    if (Cell::kStates > 1) store_lanes(c_next + j, next[1]);
    for (int k = 0; k < Cell::kSaved; ++k) store_lanes(saved + k * hidden + j, keep[k]);
  });
}

template <class Cell, class S>
class ForwardPass {
  using T = Arithmetic<S>;

  // Weights in arithmetic type, packed once a call, [Q, ...] over the problems.
  struct Packed {
    T *ih, *hh, *hr, *bias_ih, *bias_hh, *params;
    int64_t ih_size, hh_size, hr_size;

    Packed(const Forward& f, const Plan&, Carver& carve) {
      const int64_t Q = problems(f), GH = Cell::kGates * f.hidden;
      ih_size = packed_size<T>(f.input_size, GH);
      hh_size = Cell::kRecurrent ? packed_size<T>(f.output_size, GH) : 0;
      hr_size = projected(f) ? packed_size<T>(f.hidden, f.output_size) : 0;
      ih = carve.take<T>(Q * ih_size);
      hh = carve.take<T>(Q * hh_size);
      hr = carve.take<T>(Q * hr_size);
      bias_ih = carve.take<T>(Q * GH);
      bias_hh = carve.take<T>(Q * GH);
      params = carve.take<T>(Q * Cell::kParams * f.hidden);
    }
  };

  // What one walk keeps to itself. `rows` is the most that a run has; active rows are closed up.
  struct Scratch {
    T *h, *c;            // [rows, P], [rows, H]: the running states
    T *x_in, *h_in;      // [rows, I], [rows, P]: what enters the step
    T *x, *r;            // [rows, G*H]
    T *wide_h, *h_next;  // [rows, H], [rows, P]: before and after the projection
    T* kept;             // [kSaved, H]
    int64_t* active;     // [rows]

    Scratch(const Forward& f, const Plan& plan, Carver& carve) {
      const int64_t rows = largest_piece(f.batch, plan.row_chunks), GH = Cell::kGates * f.hidden;
      h = carve.take<T>(rows * f.output_size);
      c = carve.take<T>(rows * f.hidden);
      x_in = carve.take<T>(rows * f.input_size);
      h_in = carve.take<T>(rows * f.output_size);
      x = carve.take<T>(rows * GH);
      r = carve.take<T>(rows * GH);
      wide_h = carve.take<T>(rows * f.hidden);
      h_next = carve.take<T>(rows * f.output_size);
      kept = carve.take<T>(Cell::kSaved * f.hidden);
      active = carve.take<int64_t>(rows);
    }
  };

 public:
  static int64_t bytes(const Forward& f, const Plan& plan) {
    return size_of<Packed>(f, plan) + count_runs(f, plan) * size_of<Scratch>(f, plan);
  }

  static int64_t count_problems(const Forward& f, const Plan&) { return problems(f); }

  static void pack_weights(const Forward& f, const Plan& plan, void* buffer, int64_t problem) {
    const Packed packed = part_at<Packed>(buffer, 0, f, plan);
    const int64_t m = problem / f.directions, H = f.hidden, I = f.input_size, P = f.output_size, GH = Cell::kGates * H;
    const Weights& w = f.weights[problem % f.directions];
    const S* ih = at<S>(w.ih, m * GH * I);
    pack(packed.ih + problem * packed.ih_size, I, GH, [&](int64_t k, int64_t n) { return load(ih[n * I + k]); });
    load_row(packed.bias_ih + problem * GH, at<S>(w.bias_ih, m * GH), GH);
    load_row(packed.bias_hh + problem * GH, at<S>(w.bias_hh, m * GH), GH);
    load_row(packed.params + problem * Cell::kParams * H, at<S>(w.params, m * Cell::kParams * H), Cell::kParams * H);
    if (Cell::kRecurrent) {
      const S* hh = at<S>(w.hh, m * GH * P);
      pack(packed.hh + problem * packed.hh_size, P, GH, [&](int64_t k, int64_t n) { return load(hh[n * P + k]); });
    }
    if (projected(f)) {
      const S* hr = at<S>(w.hr, m * P * H);
      pack(packed.hr + problem * packed.hr_size, H, P, [&](int64_t k, int64_t n) { return load(hr[n * H + k]); });
    }
  }

  static int64_t count_walks(const Forward& f, const Plan& plan) { return count_runs(f, plan); }

  static void walk(const Forward& f, const Plan& plan, void* buffer, int64_t task) {
    const Packed packed = part_at<Packed>(buffer, 0, f, plan);
    const Scratch mem = part_at<Scratch>(buffer, size_of<Packed>(f, plan) + task * size_of<Scratch>(f, plan), f, plan);
    const auto [problem, m, d, first, last] = run_of(f, plan, task);
    const int64_t H = f.hidden, P = f.output_size;

    for (int64_t b = first; b < last; ++b) {
      load_row(mem.h + (b - first) * P, at<S>(f.h0, (problem * f.batch + b) * P), P);
      if (Cell::kStates > 1) load_row(mem.c + (b - first) * H, at<S>(f.c0, (problem * f.batch + b) * H), H);
    }
    for (int64_t step = 0; step < f.steps; ++step) {
      const int64_t t = d == 0 ? step : f.steps - 1 - step;
      int64_t active = 0;
      for (int64_t b = first; b < last; ++b) {
        if (is_active(f, m, t, b))
          mem.active[active++] = b;
        else if (!f.offsets)
          clear_row(f, m, d, row_of(f, t, b));
      }
      if (active > 0) compute_step(f, packed, mem, problem, t, first, active);
    }
    for (int64_t b = first; b < last; ++b) {
      store_row(at<S>(f.h_n, (problem * f.batch + b) * P), mem.h + (b - first) * P, P);
      if (Cell::kStates > 1) store_row(at<S>(f.c_n, (problem * f.batch + b) * H), mem.c + (b - first) * H, H);
    }
  }

 private:
  // A padded row past its end: zero output, and nothing for the backward pass.
  static void clear_row(const Forward& f, int64_t m, int64_t d, int64_t row) {
    const int64_t D = f.directions, H = f.hidden, P = f.output_size;
    zero_row(at<S>(f.output, (m * f.rows + row) * D * P + d * P), P);
    if (f.cells) zero_row(at<S>(f.cells, (m * f.rows + row) * D * H + d * H), H);
    if (f.saved) zero_row(at<S>(f.saved, ((m * D + d) * f.rows + row) * f.saved_width), f.saved_width);
  }

  static void compute_step(const Forward& f, const Packed& packed, const Scratch& mem, int64_t problem, int64_t t,
                           int64_t first, int64_t active) {
    const int64_t m = problem / f.directions, d = problem % f.directions;
    const int64_t H = f.hidden, P = f.output_size, I = f.input_size, GH = Cell::kGates * H;
    const T* bias_ih = packed.bias_ih + problem * GH;
    const T* bias_hh = packed.bias_hh + problem * GH;

    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i];
      T* h = mem.h + (b - first) * P;
      if (is_reset(f, m, d, t, b)) {
        zero_row(h, P);
        if (Cell::kStates > 1) zero_row(mem.c + (b - first) * H, H);
      }
      memcpy(mem.h_in + i * P, h, sizeof(T) * P);
      load_row(mem.x_in + i * I, at<S>(f.input, m * f.input_member_stride + row_of(f, t, b) * I), I);
      memcpy(mem.x + i * GH, bias_ih, sizeof(T) * GH);
      memcpy(mem.r + i * GH, bias_hh, sizeof(T) * GH);
    }
    multiply(active, GH, I, mem.x_in, I, 1, packed.ih + problem * packed.ih_size, mem.x, GH, f.batch == 1);
    if (Cell::kRecurrent)
      multiply(active, GH, P, mem.h_in, P, 1, packed.hh + problem * packed.hh_size, mem.r, GH, f.batch == 1);

    T* h_cell = projected(f) ? mem.wide_h : mem.h_next;
    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i], row = row_of(f, t, b);
      T* c = mem.c + (b - first) * H;
      S* saved = at<S>(f.saved, (problem * f.rows + row) * f.saved_width);
      if (saved && Cell::kStates > 1) store_row(saved + entering_c<Cell>(f), c, H);
      step_forward<Cell>(H, mem.x + i * GH, mem.r + i * GH, mem.h_in + i * P, c,
                         packed.params + problem * Cell::kParams * H, h_cell + i * H, c, mem.kept);
      if (saved) {
        store_row(saved, mem.kept, Cell::kSaved * H);
        store_row(saved + entering_h<Cell>(f), mem.h_in + i * P, P);
      }
      if (f.cells) store_row(at<S>(f.cells, ((m * f.rows + row) * f.directions + d) * H), c, H);
    }
    if (projected(f)) {
      zero_row(mem.h_next, active * P);
      multiply(active, P, H, mem.wide_h, H, 1, packed.hr + problem * packed.hr_size, mem.h_next, P, f.batch == 1);
    }
    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = mem.active[i];
      S* output = at<S>(f.output, ((m * f.rows + row_of(f, t, b)) * f.directions + d) * P);
      store_row(output, mem.h_next + i * P, P);
      // The next step reads h as it was stored: a sequence cut in two and carried over gives the same numbers.
      load_row(mem.h + (b - first) * P, output, P);
    }
  }
};

}  // namespace
}  // namespace fused_rnn
