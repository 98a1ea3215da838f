// What the backward pass does with a round's gradients of the gates besides walking on: dL/dx = dgates W_ih, and
// dL/dW_ih = dgates^T x, dL/dW_hh = dgates^T h, dL/dW_hr = dh^T (h before the projection), sums over all rows of the
// round. Every product runs on the tiles of product.h; of dgates^T a strip of columns is copied together first.
#pragma once
#include "cpu/passes/backward.h"
#include "cpu/passes/tokens.h"

namespace fused_rnn::cpu {
namespace {

template <class Cell, class S>
class WeightGradientsPass {
  using T = Arithmetic<S>;
  using E = Element<S>;
  using V = Vec<T>;
  using Shared = Gradients<Cell, S>;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kTileColumns = 6;  // of dgates, that lie together in a strip: those of a tile
  static constexpr int64_t kStrip = kParts<E> > 1 ? 96 : 48;
  // Of bfloat16 each column of a strip is turned into a row. Its length in bytes is not a power of two: else they would
  // fall into the same few lines of the first-level cache.
  static constexpr bool kTurned = kTogether<E> > 1;
  static constexpr int64_t kTurnedColumn = kRoundRows + 32, kStep = kTurned ? 1 : kTileColumns;
  static constexpr int64_t kStripSize = kStrip * (kTurned ? kTurnedColumn : kRoundRows);
  static constexpr bool kConverts = sizeof(S) != sizeof(T);

  // The rows of a product, in blocks of at most kRoundRows: those of one group in one round, active ones only, in an
  // order that does not depend on threads. Padding is never read: it may hold anything, NaN included.
  struct Rows {
    int64_t count = 0;
    int64_t *slots, *rows, *times;  // where each lies in Gradients' arrays, and in the input; its step

    Rows(const Backward& g, Carver& carve) {
      for (int64_t** list : {&slots, &rows, &times}) *list = carve.take<int64_t>(steps_of_round(g) * g.batch);
    }

    void gather(const Backward& g, const Shared& shared, int64_t round, int64_t problem, int64_t b0, int64_t b1) {
      const int64_t m = problem / g.directions, first = round * steps_of_round(g);
      count = 0;
      for (int64_t step = first; step < minimum(g.steps, first + steps_of_round(g)); ++step) {
        const int64_t t = time_back(g, problem % g.directions, step), slot = shared.first_row(g, problem, step);
        for (int64_t b = b0; b < b1; ++b) {
          if (!is_active(g, m, t, b)) continue;
          slots[count] = slot + b;
          times[count] = t;
          rows[count++] = row_of(g, t, b);
        }
      }
    }
    int64_t blocks() const { return (count + kRoundRows - 1) / kRoundRows; }
    int64_t block_size(int64_t block) const { return minimum(kRoundRows, count - block * kRoundRows); }
  };

  // Per task.
  struct Scratch {
    Rows rows;
    E* strip;  // a Strip

    Scratch(const Backward& g, const Plan&, Carver& carve) : rows(g, carve), strip(carve.take<E>(kStripSize)) {}
  };

  // The sums of a weight gradient, [rows, columns]: added up in its own array; or first elsewhere, where that is 16-bit
  // or would be added to in many rounds. The rows of one tile, whole pages apart there, lie together here, panel by
  // panel as they are multiplied. The weight gradients of single groups would be too much to have twice.
  struct SumsOf {
    static constexpr int64_t kPanel = kMostVectors * kLanes;
    int64_t groups, rows, columns;
    bool elsewhere, in_panels;

    SumsOf(const Backward& g, int64_t rows, int64_t columns) : groups(g.weight_groups), rows(rows), columns(columns) {
      in_panels = groups == 1 && (kConverts || count_rounds(g) > 1);
      elsewhere = wants_weights(g) && (kConverts || in_panels);
    }
    int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
    int64_t group_size() const { return in_panels ? rows * panels() * kPanel : rows * columns; }
    int64_t size() const { return elsewhere ? groups * group_size() : 0; }
    int64_t width(int64_t panel) const { return minimum(kPanel, columns - panel * kPanel); }
    // Where the part of row j lies that belongs to a panel.
    int64_t offset(int64_t panel, int64_t j) const {
      return in_panels ? (panel * rows + j) * kPanel : j * columns + panel * kPanel;
    }
  };
  static SumsOf sums_of_ih(const Backward& g) { return {g, Cell::kGates * g.hidden, g.input_size}; }
  static SumsOf sums_of_hh(const Backward& g) { return {g, Cell::kGates * g.hidden, g.output_size}; }
  static SumsOf sums_of_hr(const Backward& g) { return {g, g.output_size, g.hidden}; }

  // Operands in panels, for all rows of a round; and sums that are no output arrays themselves.
  struct Sums {
    E *x, *h, *wide_h;     // [Q, rows of a round, I or P or H]
    T *ih, *hh, *hr;       // [Q, ...] as SumsOf has them; of tokens ih is [Q, K, I, G*H], whatever they are
    T *bias_ih, *bias_hh;  // [Q, K, G*H]
    T* input;              // [M, N, I] when 16-bit and two directions add to it

    Sums(const Backward& g, const Plan& plan, Carver& carve) {
      const int64_t Q = problems(g), QK = Q * g.weight_groups, round = operand_rows(g);
      const int64_t GH = Cell::kGates * g.hidden, I = g.input_size, P = g.output_size;
      x = carve.take<E>(g.tokens ? 0 : Q * Plain<E>{round, I}.size());
      h = carve.take<E>(Cell::kRecurrent ? Q * Plain<E>{round, P}.size() : 0);
      wide_h = carve.take<E>(projected(g) ? Q * Plain<E>{round, g.hidden}.size() : 0);
      ih = carve.take<T>(count_token_grads(g, plan) > 0 ? QK * GH * I : g.tokens ? 0 : Q * sums_of_ih(g).size());
      hh = carve.take<T>(Cell::kRecurrent ? Q * sums_of_hh(g).size() : 0);
      hr = carve.take<T>(projected(g) ? Q * sums_of_hr(g).size() : 0);
      bias_ih = carve.take<T>(QK * GH);
      bias_hh = carve.take<T>(QK * GH);
      input = carve.take<T>(converts_input(g) ? g.members * g.rows * I : 0);
    }
  };

  // Rows of a round, each group's filled up to a whole depth.
  static int64_t operand_rows(const Backward& g) {
    return steps_of_round(g) * g.batch + g.weight_groups * (kDepthStep<E> - 1);
  }

  static bool converts_input(const Backward& g) { return kConverts && g.directions > 1 && g.grad_input; }

  static Sums sums_of(const Backward& g, const Plan& plan, void* buffer) {
    return part_at<Sums>(buffer, size_of<Shared>(g, plan), g, plan);
  }
  static Scratch scratch_of(const Backward& g, const Plan& plan, void* buffer, int64_t task) {
    return part_at<Scratch>(
        buffer, size_of<Shared>(g, plan) + size_of<Sums>(g, plan) + task * size_of<Scratch>(g, plan), g, plan);
  }
  static int64_t count_scratches(const Backward& g, const Plan& plan) { return problems(g) * plan.threads; }

  static bool wants_weights(const Backward& g) {
    bool wanted = false;
    for (int64_t d = 0; d < g.directions; ++d) {
      const WeightGradients& w = g.grads[d];
      wanted = wanted || w.ih || w.hh || w.bias_ih || w.bias_hh || w.hr;
    }
    return wanted;
  }

 public:
  static int64_t bytes(const Backward& g, const Plan& plan) {
    return size_of<Shared>(g, plan) + size_of<Sums>(g, plan) + count_scratches(g, plan) * size_of<Scratch>(g, plan);
  }

  // ---- dL/dx -------------------------------------------------------------------------------------------------------

  static int64_t count_inputs(const Backward& g, const Plan& plan) {
    return g.grad_input ? g.members * plan.threads : 0;
  }
  static int64_t count_reverse_inputs(const Backward& g, const Plan& plan) {
    return g.directions > 1 ? count_inputs(g, plan) : 0;
  }
  // One direction after the other: both add to the same rows.
  static void input_grads(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    add_input_grads(g, plan, buffer, round, task, 0);
  }
  static void reverse_input_grads(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    add_input_grads(g, plan, buffer, round, task, 1);
  }

  // ---- dL/dW -------------------------------------------------------------------------------------------------------

  static int64_t count_operands(const Backward& g, const Plan& plan) {
    return wants_weights(g) ? problems(g) * plan.threads : 0;
  }

  static void pack_operands(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const Sums sums = sums_of(g, plan, buffer);
    Rows rows = scratch_of(g, plan, buffer, task).rows;
    const int64_t problem = task / plan.threads, piece = task % plan.threads, m = problem / g.directions;
    const WeightGradients& out = g.grads[problem % g.directions];
    const S* x = at<S>(g.input, m * g.input_member_stride);
    const S* h = at<S>(g.saved, problem * g.rows * g.saved_width) + entering_h<Cell>(g);
    for (int64_t group = 0, before = 0; group < g.weight_groups; ++group, before += padded_depth<E>(rows.count)) {
      gather_group(g, shared, rows, round, problem, group);
      for (int64_t block = 0; block < rows.blocks(); ++block) {
        const int64_t k0 = block * kRoundRows;
        const auto pack = [&](E* to, int64_t columns, auto row) {
          const Plain<E> matrix = {rows.block_size(block), columns};
          const int64_t last = cut(matrix.panels(), plan.threads, piece + 1);
          for (int64_t panel = cut(matrix.panels(), plan.threads, piece); panel < last; ++panel)
            matrix.pack(operand(g, to, problem, before + k0, columns), panel, [&](int64_t k) { return row(k0 + k); });
        };
        if (out.ih && !g.tokens) pack(sums.x, g.input_size, [&](int64_t k) { return x + rows.rows[k] * g.input_size; });
        if (out.hh) pack(sums.h, g.output_size, [&](int64_t k) { return h + rows.rows[k] * g.saved_width; });
        if (out.hr)
          pack(sums.wide_h, g.hidden, [&](int64_t k) { return shared.wide_h + rows.slots[k] * shared.wide_stride; });
      }
    }
  }

  static int64_t count_blocks(const Backward& g, const Plan& plan) {
    return wants_weights(g) ? problems(g) * plan.threads : 0;
  }

  static void weight_grads(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const Sums sums = sums_of(g, plan, buffer);
    const Scratch scratch = scratch_of(g, plan, buffer, task);
    Rows rows = scratch.rows;
    const int64_t problem = task / plan.threads, piece = task % plan.threads, m = problem / g.directions;
    const int64_t GH = Cell::kGates * g.hidden, I = g.input_size, P = g.output_size;
    const WeightGradients& out = g.grads[problem % g.directions];
    const SumsOf of_ih = sums_of_ih(g), of_hh = sums_of_hh(g), of_hr = sums_of_hr(g);
    for (int64_t group = 0, before = 0; group < g.weight_groups; ++group, before += padded_depth<E>(rows.count)) {
      gather_group(g, shared, rows, round, problem, group);
      const int64_t own = problem * g.weight_groups + group, theirs = m * g.weight_groups + group;
      const Factor left = {g, rows, round, before, problem, scratch.strip};
      const int64_t j0 = cut(GH, plan.threads, piece), j1 = cut(GH, plan.threads, piece + 1);
      const Product ih = {out.ih && !g.tokens ? sums.x : nullptr, of_ih, result(of_ih, out.ih, sums.ih, own, theirs),
                          sums.bias_ih + own * GH};
      const Product hh = {out.hh ? sums.h : nullptr, of_hh, result(of_hh, out.hh, sums.hh, own, theirs),
                          sums.bias_hh + own * GH};
      // Where gates_x and gates_r are the same, each strip serves both products.
      const int64_t both = Cell::kSharedGates * g.hidden, j_both = minimum(j1, both), j_apart = maximum(j0, both);
      left.add(shared.gates_x, shared.gate_stride, j0, j_both, &ih, &hh);
      left.add(shared.gates_x, shared.gate_stride, j_apart, j1, &ih, nullptr);
      left.add(shared.gates_r, shared.gate_stride, j_apart, j1, &hh, nullptr);
      if (out.ih && g.tokens) add_by_token(g, shared, rows, round, m, j0, j1, sums.ih + own * GH * I);
      if (!out.hr) continue;
      const Product hr = {sums.wide_h, of_hr, result(of_hr, out.hr, sums.hr, own, theirs), nullptr};
      left.add(shared.outputs, shared.output_stride, cut(P, plan.threads, piece), cut(P, plan.threads, piece + 1), &hr,
               nullptr);
    }
  }

  // ---- dL/dW_ih of tokens -------------------------------------------------------------------------------------------

  static int64_t count_token_grads(const Backward& g, const Plan& plan) {
    return g.tokens && (g.grads[0].ih || g.grads[1].ih) ? problems(g) * plan.threads : 0;
  }

  // From where they were added up, [I, G*H], to where they belong.
  static void store_token_grads(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    const int64_t problem = task / plan.threads, piece = task % plan.threads, m = problem / g.directions;
    const int64_t K = g.weight_groups, GH = Cell::kGates * g.hidden, size = GH * g.input_size;
    const T* const sums = sums_of(g, plan, buffer).ih;
    void* const out = g.grads[problem % g.directions].ih;
    for (int64_t group = 0; out && group < K; ++group)
      store_transposed(at<S>(out, (m * K + group) * size), sums + (problem * K + group) * size, g.input_size, GH,
                       cut(GH, plan.threads, piece), cut(GH, plan.threads, piece + 1));
  }

  // ---- the end -----------------------------------------------------------------------------------------------------

  static int64_t count_stores(const Backward& g, const Plan& plan) {
    return sums_of_hh(g).elsewhere ? problems(g) * plan.threads : 0;
  }

  // Sums that were added up elsewhere.
  static void store_sums(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    const Sums sums = sums_of(g, plan, buffer);
    const int64_t problem = task / plan.threads, piece = task % plan.threads, m = problem / g.directions;
    const WeightGradients& out = g.grads[problem % g.directions];
    const auto store = [&](const SumsOf& of, void* to, const T* from) {
      if (!to) return;
      for (int64_t group = 0; group < of.groups; ++group) {
        const T* own = from + (problem * of.groups + group) * of.group_size();
        S* theirs = at<S>(to, (m * of.groups + group) * of.rows * of.columns);
        for (int64_t j = cut(of.rows, plan.threads, piece); j < cut(of.rows, plan.threads, piece + 1); ++j)
          for (int64_t panel = 0; panel < of.panels(); ++panel)
            store_row(theirs + j * of.columns + panel * of.kPanel, own + of.offset(panel, j), of.width(panel));
      }
    };
    if (!g.tokens) store(sums_of_ih(g), out.ih, sums.ih);
    store(sums_of_hh(g), out.hh, sums.hh);
    store(sums_of_hr(g), out.hr, sums.hr);
  }

  static int64_t count_ends(const Backward& g, const Plan&) { return problems(g); }

  // What else is not in the output arrays yet.
  static void finish(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t problem) {
    const Sums sums = sums_of(g, plan, buffer);
    const int64_t m = problem / g.directions, K = g.weight_groups, GH = Cell::kGates * g.hidden;
    const WeightGradients& out = g.grads[problem % g.directions];
    const auto copy = [&](void* to, const T* from, int64_t n) {
      if (to) store_row(at<S>(to, m * K * n), from + problem * K * n, K * n);
    };
    copy(out.bias_ih, sums.bias_ih, GH);
    copy(out.bias_hh, sums.bias_hh, GH);
    if (!converts_input(g) || problem % g.directions > 0) return;
    for (int64_t t = 0; t < g.steps; ++t)
      for (int64_t b = 0; b < g.batch; ++b) {
        const int64_t row = (m * g.rows + row_of(g, t, b)) * g.input_size;
        if (is_active(g, m, t, b)) store_row(at<S>(g.grad_input, row), sums.input + row, g.input_size);
      }
  }

 private:
  // Columns [j0, j1) of `sums`, [I, G*H]: there a row of dgates lies in one piece. Row after row, so that every sum has
  // one order.
  static void add_by_token(const Backward& g, const Shared& shared, const Rows& rows, int64_t round, int64_t m,
                           int64_t j0, int64_t j1, T* sums) {
    const int64_t GH = Cell::kGates * g.hidden;
    for (int64_t id = 0; round == 0 && id < g.input_size; ++id) zero_row(sums + id * GH + j0, j1 - j0);
    for (int64_t k = 0; k < rows.count; ++k) {
      const int64_t id = g.tokens[m * g.input_member_stride + rows.rows[k]];
      add_row(sums + id * GH + j0, shared.gates_x + rows.slots[k] * shared.gate_stride, j0, j1 - j0);
    }
  }

  static void gather_group(const Backward& g, const Shared& shared, Rows& rows, int64_t round, int64_t problem,
                           int64_t group) {
    rows.gather(g, shared, round, problem, cut(g.batch, g.weight_groups, group),
                cut(g.batch, g.weight_groups, group + 1));
  }

  // The panels of a block whose first row is row `k` of the round.
  static E* operand(const Backward& g, E* all, int64_t problem, int64_t k, int64_t columns) {
    return all + problem * Plain<E>{operand_rows(g), columns}.size() + Plain<E>{k, columns}.size();
  }

  static T* result(const SumsOf& of, void* out, T* sums, int64_t own, int64_t theirs) {
    return of.elsewhere ? sums + own * of.group_size() : at<T>(out, theirs * of.group_size());
  }

  // Columns j0 .. j0 + width - 1 of the rows that row(k) points to. Their sums over k come along: `row_sums`, of whole
  // vectors. Some rows at a time, which then stay in the first-level cache.
  template <class Row>
  static void copy_strip(E* strip, Row row, int64_t depth, int64_t j0, int64_t width, V* row_sums) {
    constexpr int64_t kRowsAtOnce = 128;
    for (int64_t j = 0; j < width; j += kLanes) row_sums[j / kLanes] = V(T(0));
    for (int64_t k0 = 0; k0 < depth; k0 += kRowsAtOnce) {
      const int64_t k1 = minimum(depth, k0 + kRowsAtOnce);
      if constexpr (!kTurned) {
        for (int64_t j = 0; j < width; j += kLanes) {  // rows are as long as whole vectors
          V sum = row_sums[j / kLanes];
          for (int64_t k = k0; k < k1; ++k) sum = sum + load_at(row(k), j0 + j);
          row_sums[j / kLanes] = sum;
        }
        for (int64_t j = 0; j < width; j += kTileColumns)
          for (int64_t k = k0; k < k1; ++k)  // what lies beyond the width is not used
            memcpy(strip + j * depth + k * kTileColumns, row(k) + j0 + j, sizeof(E) * kTileColumns);
      } else {
        for (int64_t j = 0; j < width; j += kLanes)
          for (int64_t k = k0; k < k1; k += kLanes * kTogether<E>) {
            Square<E> square;
            for (int64_t i = 0; i < kLanes; ++i)
              square.set_row(i, load_line<E>(row, k / kTogether<E> + i, depth, j0 + j, width - j));
            row_sums[j / kLanes] = square.add_rows_to(row_sums[j / kLanes]);
            square.transpose();
            for (int64_t i = 0; i < minimum(kLanes, width - j); ++i)
              store_factors(strip + (j + i) * kTurnedColumn + k, square.row(i));
          }
      }
    }
  }
  // Where column j of a strip begins; its numbers are kStep apart.
  static const E* column_of(const E* strip, int64_t j, int64_t depth) {
    if (kTurned) return strip + j * kTurnedColumn;
    return strip + j / kTileColumns * kTileColumns * depth + j % kTileColumns;
  }

  // One right factor, in panels, and what its product is added to, and the left factor's own sums over the rows. Either
  // may be absent.
  struct Product {
    E* panels;
    SumsOf sums;
    T* result;
    T* bias;
  };

  // The left factor, transposed: columns of dgates or of dh.
  struct Factor {
    const Backward& g;
    const Rows& rows;
    int64_t round, before, problem;
    E* strip;

    // For j0 <= j < j1 and each product:
    //   result[j, 0 .. columns) += sum over the rows k of from[k, j] * panels[k, ..]    bias[j] += sum of from[k, j]
    // In the first round the results begin.
    void add(const E* from, int64_t stride, int64_t j0, int64_t j1, const Product* one, const Product* two) const {
      if (j0 >= j1) return;
      if (round == 0 && rows.count == 0) {
        for (const Product* p : {one, two}) {
          for (int64_t j = j0; p && p->panels && j < j1; ++j)
            for (int64_t panel = 0; panel < p->sums.panels(); ++panel)
              zero_row(p->result + p->sums.offset(panel, j), p->sums.width(panel));
          if (p && p->bias) zero_row(p->bias + j0, j1 - j0);
        }
      }
      for (int64_t block = 0; block < rows.blocks(); ++block)
        for (int64_t j = j0; j < j1; j += kStrip) {
          const int64_t width = minimum(kStrip, j1 - j), depth = rows.block_size(block);
          const int64_t* slots = rows.slots + block * kRoundRows;
          V row_sums[(kStrip + kLanes - 1) / kLanes];
          copy_strip(strip, [&](int64_t k) { return from + slots[k] * stride; }, depth, j, width, row_sums);
          // Back and forth through both right factors (PanelRange).
          const bool back = (j - j0) / kStrip % 2 == 1;
          for (const Product* p : {back ? two : one, back ? one : two}) {
            if (p && p->bias) add_bias(block, p->bias + j, width, row_sums);
            if (p && p->panels) add_strip(block, j, width, *p, back);
          }
        }
    }

    bool is_first(int64_t block) const { return round == 0 && block == 0; }

    void add_bias(int64_t block, T* bias, int64_t width, const V* row_sums) const {
      for (int64_t j = 0; j < width; j += kLanes) {
        const int64_t n = minimum(kLanes, width - j);
        const V sum = row_sums[j / kLanes];
        store_vector(bias + j, is_first(block) ? sum : load_vector(bias + j, n) + sum, n);
      }
    }

    void add_strip(int64_t block, int64_t j0, int64_t width, const Product& p, bool back) const {
      const int64_t depth = rows.block_size(block);
      const Plain<E> matrix = {depth, p.sums.columns};
      const E* packed = operand(g, p.panels, problem, before + block * kRoundRows, p.sums.columns);
      const auto result = [&](int64_t panel, int64_t j) { return p.result + p.sums.offset(panel, j0 + j); };
      multiply(
          matrix, packed, PanelRange{0, matrix.panels(), back},
          LeftRows{width, [&](int64_t j) { return column_of(strip, j, depth); }, kStep},
          [&](int64_t panel, int64_t j) { fetch_row_to_write(result(panel, j), matrix.panel_vectors(panel) * kLanes); },
          [&](int64_t panel, int64_t j, const T* sums) {
            for (int v = 0; v < matrix.panel_vectors(panel); ++v) {
              const int64_t n = minimum(kLanes, p.sums.width(panel) - v * kLanes);
              T* const to = result(panel, j) + v * kLanes;
              const V sum = load_vector(sums + v * kLanes);
              store_vector(to, is_first(block) ? sum : load_vector(to, n) + sum, n);
            }
          });
    }
  };

  // Has the other direction been at step t already? In one round direction 0 comes first.
  static bool is_second(const Backward& g, int64_t round, int64_t d, int64_t t) {
    if (g.directions == 1) return false;
    const int64_t others = time_back(g, 1 - d, t) / steps_of_round(g);
    return d == 0 ? others < round : others <= round;
  }

  static void add_input_grads(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task,
                              int64_t d) {
    const Shared shared = part_at<Shared>(buffer, 0, g, plan);
    const Sums sums = sums_of(g, plan, buffer);
    Rows rows = scratch_of(g, plan, buffer, task).rows;
    const int64_t m = task / plan.threads, piece = task % plan.threads, I = g.input_size;
    const int64_t problem = m * g.directions + d;
    const Plain<E> ih = Shared::input_weights(g);
    rows.gather(g, shared, round, problem, 0, g.batch);
    const int64_t first = cut(rows.count, plan.threads, piece),
                  count = cut(rows.count, plan.threads, piece + 1) - first;
    const auto row = [&](int64_t i) { return shared.gates_x + rows.slots[first + i] * shared.gate_stride; };
    multiply(ih, shared.ih + problem * ih.size(), PanelRange{0, ih.panels()}, LeftRows{count, row}, FetchNothing{},
             [&](int64_t panel, int64_t i, const T* values) {
               const int64_t row = rows.rows[first + i], at_row = (m * g.rows + row) * I;
               const bool add = is_second(g, round, d, rows.times[first + i]);
               for (int v = 0; v < ih.panel_vectors(panel); ++v) {
                 const int64_t column = ih.first_column(panel) + v * kLanes, n = minimum(kLanes, I - column);
                 const V value = load_vector(values + v * kLanes);
                 const auto put = [&](auto* to) { store_vector(to, add ? load_vector(to, n) + value : value, n); };
                 if (converts_input(g))
                   put(sums.input + at_row + column);
                 else
                   put(at<S>(g.grad_input, at_row + column));
               }
             });
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
