// The forward pass's weights: packed once, or, for a step or two, read unpacked.
#pragma once
#include "cpu/gemm/amx.h"
#include "cpu/passes/forward/choices.h"
#include "cpu/passes/forward/quantized.h"
#include "cpu/passes/tokens.h"
#include "cpu/passes/workspace.h"

namespace fused_rnn::cpu {
namespace {

// A part of the workspace: the packed weights of all problems, one after another.
template <class Shape, class S>
struct PackedWeights {
  using T = Arithmetic<S>;
  using W = Weight<S>;
  W *ih, *hh, *hr;
  T *bias_ih, *bias_hh, *params;
  Scales ih_scales, hh_scales, hr_scales;                     // of weights of 8 bits
  int64_t ih_size, hh_size, hr_size, bias_size, params_size;  // of one problem

  static Plain<W> projection(const Layer& f) { return {f.hidden, f.output_size}; }

  PackedWeights(const Forward& f, const Plan& plan, Carver& carve) {
    const int64_t Q = problems(f), units = GatePanels<Shape, T>{f.hidden}.padded_units();
    bias_size = Shape::kGates * units;
    params_size = Shape::kParams * units;
    ih_size = ForwardChoices<Shape, S>::packs_input(f, plan) ? bias_size * padded_depth<W>(f.input_size) : 0;
    hh_size = plan.packs() && Shape::kRecurrent ? bias_size * padded_depth<W>(f.output_size) : 0;
    hr_size = Shape::projects(f) ? projection(f).size() : 0;
    ih = carve.take<W>(Q * ih_size);
    hh = carve.take<W>(Q * hh_size);
    hr = carve.take<W>(Q * hr_size);
    hr_scales_size = kQuantized<S> && hr_size > 0 ? projection(f).vectors() * Vec<float>::kLanes : 0;
    for (Scales* scales : {&ih_scales, &hh_scales}) *scales = take_scales(carve, Q * (kQuantized<S> ? bias_size : 0));
    hr_scales = take_scales(carve, Q * hr_scales_size);
    bias_ih = carve.take<T>(Q * bias_size);
    bias_hh = carve.take<T>(Q * bias_size);
    params = carve.take<T>(Q * params_size);
  }

  PackedWeights of_problem(int64_t problem) const {
    PackedWeights own = *this;
    own.ih += problem * ih_size;
    own.hh += problem * hh_size;
    own.hr += problem * hr_size;
    own.bias_ih += problem * bias_size;
    own.bias_hh += problem * bias_size;
    own.params += problem * params_size;
    if (kQuantized<S>) {
      own.ih_scales = ih_scales.from(problem * bias_size);
      own.hh_scales = hh_scales.from(problem * bias_size);
      own.hr_scales = hr_scales.from(problem * hr_scales_size);
    }
    return own;
  }

 private:
  int64_t hr_scales_size;

  static Scales take_scales(Carver& carve, int64_t count) {
    return {carve.take<float>(count), carve.take<int32_t>(count)};
  }
};

// Packs a share of one problem's weights.
template <class Shape, class S>
class WeightPacker {
  using T = Arithmetic<S>;
  using W = Weight<S>;
  using V = Vec<T>;
  using Panels = GatePanels<Shape, T>;
  using Packed = PackedWeights<Shape, S>;

 public:
  WeightPacker(const Forward& f, const Plan& plan, void* buffer, int64_t task)
      : f_(f),
        m_(task / plan.threads / f.directions),
        panels_{f.hidden},
        to_(part_at<Packed>(buffer, 0, f, plan).of_problem(task / plan.threads)),
        from_(f.weights[task / plan.threads % f.directions]),
        part_(task % plan.threads),
        parts_(plan.threads) {}

  void run() const {
    const int64_t GH = Shape::kGates * f_.hidden, I = f_.input_size, P = f_.output_size;
    const Range own = part_of(panels_.count(), parts_, part_);
    for (int64_t panel = own.first; panel < own.last; ++panel) {
      if (to_.ih_size > 0) pack(to_.ih, to_.ih_scales, at<S>(from_.ih, m_ * GH * I), panel, I);
      if (to_.hh_size > 0) pack(to_.hh, to_.hh_scales, at<S>(from_.hh, m_ * GH * P), panel, P);
      pack_biases(panel);
    }
    if (part_ == 0) pack_the_rest();
  }

 private:
  void pack(W* to, Scales scales, const S* from, int64_t panel, int64_t depth) const {
    const GateMatrix<Shape, W> matrix = {panels_, depth};
    panels_.for_vectors(panel, [&](int v, int g, Units units) {
      const S* rows = from + (g * f_.hidden + units.first) * depth;
      if constexpr (kQuantized<S>)
        quantize_vector(matrix, to, scales, panel, v, rows, units.count);
      else
        pack_transposed(to + matrix.offset(panel), panels_.vectors(panel), v, depth, rows, units.count);
    });
  }

  void pack_biases(int64_t panel) const {
    const int64_t H = f_.hidden, GH = Shape::kGates * H;
    panels_.for_vectors(panel, [&](int v, int g, Units units) {
      const auto bias = [&](const void* b) {
        return b ? load_vector(at<S>(b, m_ * GH + g * H + units.first), units.count) : V(T(0));
      };
      const V ih = bias(from_.bias_ih), hh = bias(from_.bias_hh);
      // A cell whose gradients of x and r are equal only uses their sum, and the sum of the biases.
      const int64_t j = panel * Panels::kWidth + v * V::kLanes;
      store_vector(to_.bias_ih + j, kOneGateGradient<Shape> ? ih + hh : ih);
      store_vector(to_.bias_hh + j, hh);
    });
  }

  void pack_the_rest() const {
    const int64_t H = f_.hidden, P = f_.output_size;
    for (int64_t p = 0; p < Shape::kParams; ++p)
      load_row(to_.params + p * panels_.padded_units(), at<S>(from_.params, (m_ * Shape::kParams + p) * H), H);
    if (!Shape::projects(f_)) return;
    const Plain<W> hr = Packed::projection(f_);
    const S* from = at<S>(from_.hr, m_ * P * H);
    for (int64_t panel = 0; panel < hr.panels(); ++panel) {
      if constexpr (kQuantized<S>) {
        for (int v = 0; v < hr.panel_vectors(panel); ++v) {
          const int64_t first = hr.first_column(panel) + v * V::kLanes;
          quantize_vector(hr, to_.hr, to_.hr_scales, panel, v, from + first * H, minimum(V::kLanes, P - first));
        }
      } else {
        hr.pack_transpose_of(to_.hr, panel, from);
      }
    }
  }

  const Forward& f_;
  int64_t m_;
  Panels panels_;
  Packed to_;
  const Weights& from_;
  int64_t part_, parts_;
};

// A gate matrix, [G*H, depth], packed or row-major. In blocks, sums have the order that they have in packed panels; for a
// step or a few, blocks cost less than packing, since each stays in L1. With weights of 8 bits: QuantizedWeights.
template <class Shape, class S>
struct GateWeights {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using Panels = GatePanels<Shape, T>;
  static constexpr int64_t kLanes = Panels::kLanes;

  GateMatrix<Shape, E> matrix;
  Reading reading;
  const E* packed;
  const S* plain;

  // Whether few rows of the unpacked matrix are read side by side, for so many rows of A.
  bool reads_few(int64_t rows) const {
    const int64_t row_bytes = matrix.depth * int64_t(sizeof(S));
    return Shape::kGates * matrix.panels.hidden * row_bytes <= kMostBytesOfFew &&
           (rows == 1 || row_bytes % kPageBytes == 0);
  }

  // f(vector of the panel, rows of the unpacked matrix, their number) for every vector of a panel.
  template <class F>
  void for_rows(int64_t panel, F f) const {
    const Panels& panels = matrix.panels;
    panels.for_vectors(panel, [&](int v, int g, Units units) {
      f(v, plain + (g * panels.hidden + units.first) * matrix.depth, units.count);
    });
  }

  // Its product with some rows: the interface of `multiply`.
  template <class Row, class Fetch, class Use, class Results = KeepNothing>
  void multiply_by(PanelRange range, const LeftRows<Row>& left, Fetch fetch, Use use, Results results = {}) const {
    if (reading != Reading::kRows) return multiply_in_panels(range, left, fetch, use, results);
    if constexpr (kParts<E> == 1) {
      constexpr int kFew = kLanes < kFewSideBySide ? kLanes : kFewSideBySide;
      T buffer[kRowsOfStrip * Panels::kWidth] __attribute__((aligned(64)));
      const bool few = reads_few(left.count);
      for (int64_t panel = range.first; panel < range.last; ++panel)
        for (int64_t first = 0; first < left.count; first += kRowsOfStrip) {
          const int64_t width = matrix.panels.width(panel);
          T* const kept = results(panel);
          T* const sums = kept ? kept + first * width : buffer;
          const LeftRows some = {minimum(kRowsOfStrip, left.count - first),
                                 [&](int64_t i) { return left.row(first + i); }};
          for_rows(panel, [&](int v, const S* rows, int64_t count) {
            const auto store = [&](int64_t i, Vec<T> x) { store_vector(sums + i * width + v * kLanes, x); };
            if (few)
              multiply_strip<E, kFew>(matrix.depth, rows, count, some, store);
            else
              multiply_strip<E, kLanes>(matrix.depth, rows, count, some, store);
          });
          for (int64_t i = 0; i < some.count; ++i) use(panel, first + i, sums + i * width);
        }
    }
  }

  template <class Row, class Fetch, class Use, class Results>
  void multiply_in_panels(PanelRange range, const LeftRows<Row>& left, Fetch fetch, Use use, Results results) const {
#ifdef FUSED_RNN_AMX
    multiply(matrix, packed, range, left, fetch, use, results);
#else
    constexpr int kMost = GateMatrix<Shape, E>::kMostOfPanel;
    E block[kLinesAtOnce * kMost * kLanes * kTogether<E>] __attribute__((aligned(64)));
    const bool is_packed = reading == Reading::kPacked;
    const auto source = [&](int64_t panel, int64_t next) {
      const int vectors = matrix.panel_vectors(panel);
      const auto lines = [&, panel, vectors](int64_t first, int64_t count) -> const E* {
        if (is_packed) return packed + matrix.offset(panel) + first * line_size<E>(vectors);
        for_rows(panel, [&](int v, const S* rows, int64_t columns) {
          pack_transposed(block, vectors, v, matrix.depth, rows, columns, first, count);
        });
        return block;
      };
      return panel_source<E, kMost>(lines, is_packed ? packed + matrix.offset(next) : block, matrix.depth, vectors);
    };
    multiply_panels<E>(range, source, left, fetch, use, results);
#endif
  }

  // Its product with one-hot rows, given as ids: [count, width of the panel].
  void look_up(int64_t panel, const int64_t* ids, int64_t count, T* sums) const {
    for (int64_t i = 0; i < count; ++i, sums += matrix.panels.width(panel)) {
      if (reading == Reading::kPacked)
        load_panel_row(sums, packed + matrix.offset(panel), matrix.panels.vectors(panel), ids[i]);
      else
        for_rows(panel, [&](int v, const S* rows, int64_t count) {
          store_vector(sums + v * kLanes, load_column(rows + ids[i], matrix.depth, count));
        });
    }
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
