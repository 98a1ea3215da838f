// The products of the weight gradients: strips of dgates^T, or of dh^T, times panels of x or h.
#pragma once
#include "cpu/passes/weight_grads/task.h"

namespace fused_rnn::cpu {
namespace {

template <class S>
class WeightProducts {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using State = WeightGradState<S>;
  using Layout = SumLayout<S>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  WeightProducts(const BackwardWorkspace<S>& space, int64_t round, int64_t task) : t_(space, round, task) {}

  void run() {
    t_.for_groups([&](int64_t group, int64_t first) {
      first_ = first;
      add_group(group);
    });
  }

 private:
  // A left operand: rows of dgates or of dh.
  struct Left {
    const E* rows;
    int64_t stride;
  };

  // A right operand, packed or, for few rows, unpacked; the accumulator of its product; and that of the left operand's
  // column sums. Either may be absent.
  struct Right {
    const E* panels;
    Rows<S> rows;
    Layout layout;
    T* result;
    T* bias;
  };

  void add_group(int64_t group) const {
    const Backward& g = t_.g;
    const WeightGradients& out = t_.out;
    const State& sums = t_.sums;
    const int64_t GH = t_.state.cell.gates * g.hidden, biases = (t_.problem * g.weight_groups + group) * GH;
    const Layout of_ih = State::layout_ih(g), of_hh = State::layout_hh(g), of_hr = State::layout_hr(g);
    const Right ih = {out.ih && !g.tokens ? sums.x : nullptr, t_.input_rows(), of_ih,
                      result(of_ih, out.ih, sums.ih, group), sums.bias_ih + biases};
    const Right hh = {out.hh ? sums.h : nullptr, t_.hidden_rows(), of_hh, result(of_hh, out.hh, sums.hh, group),
                      sums.bias_hh + biases};
    const Left x = {t_.state.gates_x, t_.state.gate_stride}, r = {t_.state.gates_r, t_.state.gate_stride};
    const Range own = t_.share_of(GH);
    // For gates where gates_x equals gates_r, each strip serves both products. With layer norm there is no gates_x.
    const int64_t same = normalizes(g) ? 0 : t_.state.cell.shared_gates * g.hidden;
    const Range apart = {maximum(own.first, same), own.last};
    add(x, {own.first, minimum(own.last, same)}, &ih, &hh);
    add(x, apart, &ih, nullptr);
    add(r, apart, &hh, nullptr);
    if (out.ih && g.tokens) add_by_token(own, sums.ih + biases * g.input_size);
    if (!out.hr) return;
    const Right hr = {sums.wide_h, {}, of_hr, result(of_hr, out.hr, sums.hr, group), nullptr};
    add({t_.state.outputs, t_.state.output_stride}, t_.share_of(g.output_size), &hr, nullptr);
  }

  // The accumulator of one group's gradient.
  T* result(const Layout& layout, void* out, T* sums, int64_t group) const {
    const int64_t K = t_.g.weight_groups;
    if (layout.elsewhere) return sums + (t_.problem * K + group) * layout.group_size();
    return at<T>(out, (t_.m * K + group) * layout.group_size());
  }

  // For columns j of the left operand, and one or two right operands:
  //   result[j, 0 .. columns) += sum over rows k of left[k, j] * panels[k, ..]     bias[j] += sum of left[k, j]
  // The first round overwrites.
  void add(Left left, Range columns, const Right* one, const Right* two) const {
    if (columns.first >= columns.last) return;
    if (t_.round == 0 && t_.rows.count == 0) {
      clear(one, columns);
      clear(two, columns);
    }
    if (t_.has_few_rows()) {
      add_few_rows(left, columns, one);
      add_few_rows(left, columns, two);
      return;
    }
    for (int64_t block = 0; block < t_.rows.blocks(); ++block)
      for (int64_t j = columns.first; j < columns.last; j += Strip<S>::kColumns) {
        const Range strip = {j, minimum(j + Strip<S>::kColumns, columns.last)};
        const int64_t* slots = t_.rows.slots + block * kRowsOfRound;
        V row_sums[(Strip<S>::kColumns + kLanes - 1) / kLanes];
        t_.strip.copy([&](int64_t k) { return left.rows + slots[k] * left.stride; }, t_.rows.block_size(block),
                      strip.first, strip.count(), row_sums);
        // Alternate the sweep's direction, so that the last panels are still cached.
        const bool back = (j - columns.first) / Strip<S>::kColumns % 2 == 1;
        for (const Right* right : {back ? two : one, back ? one : two}) {
          if (right && right->bias) add_bias(block, strip, right->bias, row_sums);
          if (right && right->panels) add_strip(block, strip, *right, back);
        }
      }
  }

  static void clear(const Right* right, Range columns) {
    if (!right) return;
    for (int64_t j = columns.first; right->panels && j < columns.last; ++j)
      for (int64_t panel = 0; panel < right->layout.panels(); ++panel)
        zero_row(right->result + right->layout.offset(panel, j), right->layout.width(panel));
    if (right->bias) zero_row(right->bias + columns.first, columns.count());
  }

  // `add` as outer products, for one unpacked right operand: each row of the result is written once.
  void add_few_rows(Left left, Range columns, const Right* right) const {
    if (!right) return;
    if (right->bias)
      for (int64_t j = columns.first; j < columns.last; j += kLanes) {
        const int64_t n = minimum(kLanes, columns.last - j);
        V sum(T(0));
        for (int64_t k = 0; k < t_.rows.count; ++k) sum = sum + load_vector(left_row(left, k) + j, n);
        store_vector(right->bias + j, sum, n);
      }
    if (!right->panels) return;
    switch (t_.rows.count) {
      case 1:
        return add_outer_products<1>(left, columns, *right);
      case 2:
        return add_outer_products<2>(left, columns, *right);
      case 3:
        return add_outer_products<3>(left, columns, *right);
      case 4:
        return add_outer_products<4>(left, columns, *right);
    }
  }

  template <int kRows>
  void add_outer_products(Left left, Range columns, const Right& right) const {
    static_assert(kRows <= kMostRowsOfOuterProducts);
    const int64_t width = right.layout.columns;
    const S* x[kRows];
    for (int k = 0; k < kRows; ++k) x[k] = right.rows[k];
    for (int64_t j = columns.first; j < columns.last; ++j) {
      T* const to = right.result + j * width;
      V factor[kRows];
      for (int k = 0; k < kRows; ++k) factor[k] = V(left_row(left, k)[j]);
      for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t n = minimum(kLanes, width - i);
        V sum = factor[0] * load_vector(x[0] + i, n);
        for (int k = 1; k < kRows; ++k) sum = sum + factor[k] * load_vector(x[k] + i, n);
        store_vector(to + i, sum, n);
      }
    }
  }

  const T* left_row(Left left, int64_t k) const {
    return reinterpret_cast<const T*>(left.rows + t_.rows.slots[k] * left.stride);
  }

  bool is_first(int64_t block) const { return t_.round == 0 && block == 0; }

  void add_bias(int64_t block, Range strip, T* bias, const V* row_sums) const {
    for (int64_t j = 0; j < strip.count(); j += kLanes) {
      const int64_t n = minimum(kLanes, strip.count() - j);
      T* const to = bias + strip.first + j;
      const V sum = row_sums[j / kLanes];
      store_vector(to, is_first(block) ? sum : load_vector(to, n) + sum, n);
    }
  }

  void add_strip(int64_t block, Range strip, const Right& right, bool back) const {
    const int64_t depth = t_.rows.block_size(block), columns = right.layout.columns;
    const Plain<E> matrix = {depth, columns};
    const int64_t row = first_ + block * kRowsOfRound;
    const E* packed = right.panels + State::operand_at(t_.g, t_.problem, row, columns);
    const bool begins = is_first(block);
    const Layout layout = right.layout;
    T* const result = right.result;
    const auto fetch = [&](int64_t panel, int64_t j) {
      if (begins) return;  // what is overwritten is not read
      fetch_row_to_write(result + layout.offset(panel, strip.first + j), matrix.panel_vectors(panel) * kLanes);
    };
    multiply(matrix, packed, PanelRange{0, matrix.panels(), back},
             LeftRows{strip.count(), [&](int64_t j) { return t_.strip.column(j, depth); }, Strip<S>::kStep}, fetch,
             [=, first = strip.first](int64_t panel, int64_t j, const T* sums) {
               store(result + layout.offset(panel, first + j), sums, layout.width(panel), begins);
             });
  }

  // Stores a row of a panel's sums, or adds them. Copies of all that it needs: each store might alter what a reference
  // leads to.
  static FUSED_RNN_INLINE void store(T* to, const T* sums, int64_t width, bool begins) {
    if (width == Layout::kPanel && begins) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < Layout::kPanel; j += kLanes) store_vector(to + j, load_vector(sums + j));
      return;
    }
    for (int64_t j = 0; j < width; j += kLanes) {
      const int64_t n = minimum(kLanes, width - j);
      const V sum = load_vector(sums + j);
      store_vector(to + j, begins ? sum : load_vector(to + j, n) + sum, n);
    }
  }

  // dL/dW_ih of tokens: some columns of `sums`, [I, G*H], so that rows of dgates are added contiguously; in sequence,
  // so that every sum has a fixed order.
  void add_by_token(Range columns, T* sums) const {
    const Backward& g = t_.g;
    const int64_t GH = t_.state.cell.gates * g.hidden, j0 = columns.first, width = columns.count();
    for (int64_t id = 0; t_.round == 0 && id < g.input_size; ++id) zero_row(sums + id * GH + j0, width);
    for (int64_t k = 0; k < t_.rows.count; ++k) {
      const int64_t id = g.tokens[t_.m * g.input_member_stride + t_.rows.rows[k]];
      add_row(sums + id * GH + j0, t_.state.gates_x + t_.rows.slots[k] * t_.state.gate_stride, j0, width);
    }
  }

  WeightGradTask<S> t_;
  int64_t first_;  // first row of the group in the operands
};

}  // namespace
}  // namespace fused_rnn::cpu
