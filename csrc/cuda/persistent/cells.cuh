// A thread's cell: one unit of one batch row through all steps, forward or backward, with its state in registers. The
// arrays are those of the stepwise engine (device/arrays.h), and a run leaves them as that engine would.
//
//   kRows             rows of weights per unit
//   kPublished        numbers that a unit publishes per step
//   Common            warp-uniform values
//   begin             loads the initial state
//   first_published   what to publish before the first step
//   fetch             prefetches a step's other inputs into registers; no conversion, which would wait for the load
//   advance           one step: from the sums to the numbers to publish
//   store             stores the step's results, after publishing
//   move              advances pointers to the next step's rows, by precomputed strides
//   end               stores the final state
#pragma once
#include "cuda/persistent/quick.cuh"
#include "cuda/persistent/traversal.cuh"

namespace fused_rnn::cuda {
namespace {

template <class CellType, class StorageType>
class ForwardCell {
 public:
  using Cell = CellType;
  using Storage = StorageType;
  using T = Arithmetic<Storage>;
  using Number = CellNumber<Storage>;
  using Args = Forward;
  using Arrays = ForwardArrays;
  static constexpr int kRows = Cell::kGates, kPublished = 1;
  static constexpr bool kBack = false;

  struct Common {
    bool saves, has_cells, packed, resets;
    int64_t hidden, to_h, to_c;  // in a row of `saved`: from one kept number to the next; to the states
    int64_t x, output, saved;    // bytes from a step to the next
    FUSED_RNN_DEVICE Common(const Args& f, const Traversal& traversal)
        : saves(f.saved),
          has_cells(Cell::kStates > 1 && f.cells),
          packed(traversal.packed),
          resets(traversal.resets),
          hidden(f.hidden),
          to_h(entering_h(f, Cell::kSaved)),
          to_c(entering_c(f, Cell::kSaved)) {
      pace(f, traversal);
    }
    FUSED_RNN_DEVICE void pace(const Args& f, const Traversal& traversal) {
      const int64_t rows = traversal.rows_to_next();
      x = rows * Cell::kGates * f.hidden * static_cast<int>(sizeof(T));
      output = rows * f.directions * f.hidden * static_cast<int>(sizeof(Storage));
      saved = rows * f.saved_width * static_cast<int>(sizeof(Storage));
    }
  };
  static FUSED_RNN_DEVICE int slots(int steps) { return steps; }

  FUSED_RNN_DEVICE void rest() { steps_ = {0, 0}; }
  FUSED_RNN_DEVICE void begin(const Args& f, const Arrays& a, const Traversal& traversal, int64_t b, int64_t unit) {
    const int64_t H = f.hidden, d = traversal.d, m = traversal.m;
    steps_.set(traversal, b);
    b_ = b;
    own_ = (traversal.problem * f.batch + b) * H + unit;
    const int64_t row = traversal.first_row(traversal.number) + b;
    const int64_t by_row = ((m * f.rows + row) * f.directions + d) * H + unit;
    x_ = at<T>(a.x, (traversal.problem * a.x_rows + row - pick(a.x_first_row, d)) * Cell::kGates * H + unit);
    output_ = at<Storage>(f.output, by_row);
    cells_ = at<Storage>(f.cells, by_row);
    saved_ = at<Storage>(f.saved, (traversal.problem * f.rows + row) * f.saved_width + unit);
    const Weights w = pick(f.weights, d);
    const int64_t gates = m * Cell::kGates * H + unit;
    FUSED_RNN_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) {
      bias_x_[g] = w.bias_ih ? load(at<Storage>(w.bias_ih, gates)[g * H]) : T(0);
      bias_r_[g] = w.bias_hh ? load(at<Storage>(w.bias_hh, gates)[g * H]) : T(0);
      if (g >= Cell::kSharedGates) continue;
      bias_x_[g] += bias_r_[g];  // the cell only uses the sum of x and r
      bias_r_[g] = T(0);
    }
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i)
      params_[i] = T(load(*at<Storage>(w.params, (m * Cell::kParams + i) * H + unit)));
    h_ = *at<Storage>(a.h, own_);
    if (Cell::kStates > 1) c_ = *at<T>(a.c, own_);
  }
  FUSED_RNN_DEVICE void first_published(Storage (&published)[kPublished]) const { published[0] = h_; }

  FUSED_RNN_DEVICE void fetch(const Args& f, const Common& common, const Traversal& traversal, int number) {
    if (!steps_.is_active()) return;
    if (common.resets) cut_ = is_reset(f, traversal.m, traversal.d, traversal.time_of(number), b_);
    FUSED_RNN_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) entering_x_[g] = x_[g * common.hidden];
  }

  FUSED_RNN_DEVICE void advance(const Common& common, const T* sums, Storage (&published)[kPublished]) {
    if (steps_.is_active()) {
      Number x[Cell::kGates], r[Cell::kGates], state[kMaxStates], next[kMaxStates];
      T recurrent[Cell::kGates];
      FUSED_RNN_UNROLL
      for (int g = 0; g < Cell::kGates; ++g) recurrent[g] = sums[g];
      entered_h_ = h_;
      if (Cell::kStates > 1) entered_c_ = c_;
      if (common.resets && cut_) {
        rare();
        FUSED_RNN_UNROLL
        for (int g = 0; g < Cell::kGates; ++g) recurrent[g] = T(0);
        entered_h_ = Storage{};
        if (Cell::kStates > 1) entered_c_ = T(0);
      }
      FUSED_RNN_UNROLL
      for (int g = 0; g < Cell::kGates; ++g) {
        x[g] = entering_x_[g] + bias_x_[g];
        r[g] = g < Cell::kSharedGates ? recurrent[g] : recurrent[g] + bias_r_[g];
      }
      if (Cell::kReadsH) state[0] = load(entered_h_);
      if (Cell::kStates > 1) state[1] = entered_c_;
      Cell::forward(x, r, state, params_, next, kept_);
      cuda::store(h_, plain(next[0]));
      if (Cell::kStates > 1) c_ = plain(next[1]);
    }
    published[0] = h_;
  }

  FUSED_RNN_DEVICE void store(const Common& common) const {
    if (steps_.is_active())
      put(common, [](Storage& to, T value) { cuda::store(to, value); });
    else if (!common.packed)  // padding, which results are written to as zeros; packed input has none
      put(common, [](Storage& to, T) { to = {}; });
  }

  FUSED_RNN_DEVICE void move(const Common& common) {
    steps_.move();
    move_by(x_, common.x);
    move_by(output_, common.output);
    if (common.has_cells) move_by(cells_, common.output);
    if (common.saves) move_by(saved_, common.saved);
  }

  FUSED_RNN_DEVICE void end(const Args&, const Arrays& a, const Traversal&) const {
    *at<Storage>(a.h, own_) = h_;
    if (Cell::kStates > 1) *at<T>(a.c, own_) = c_;
  }

 private:
  template <class Put>
  FUSED_RNN_DEVICE void put(const Common& common, Put put) const {
    put_bits(*output_, h_);
    if (common.has_cells) put(*cells_, c_);
    if (!common.saves) return;
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) put(saved_[k * common.hidden], plain(kept_[k]));
    put_bits(saved_[common.to_h], entered_h_);
    if (Cell::kStates > 1) put(saved_[common.to_c], entered_c_);
  }
  FUSED_RNN_DEVICE void put_bits(Storage& to, Storage bits) const { to = steps_.is_active() ? bits : Storage{}; }

  ActiveSteps steps_;
  int64_t b_, own_;
  const T* x_;
  Storage *output_, *cells_, *saved_;
  T entering_x_[Cell::kGates], bias_x_[Cell::kGates], bias_r_[Cell::kGates], c_, entered_c_;
  Number params_[Cell::kParams + 1], kept_[Cell::kSaved];
  Storage h_ = {}, entered_h_;
  bool cut_ = false;
};

template <class CellType, class StorageType>
class BackwardCell {
 public:
  using Cell = CellType;
  using Storage = StorageType;
  using T = Arithmetic<Storage>;
  using Number = CellNumber<Storage>;
  using Args = Backward;
  using Arrays = BackwardArrays;
  static constexpr int kRows = 1, kPublished = Cell::kGates;
  static constexpr bool kBack = true;

  struct Common {
    bool has_output, has_cells, packed, resets, clips;
    T most;
    int64_t hidden, to_h, to_c;    // in a row of `saved`: from one kept number to the next; to the states
    int64_t saved, output, gates;  // bytes from a step to the next
    FUSED_RNN_DEVICE Common(const Args& g, const Traversal& traversal)
        : has_output(g.grad_output),
          has_cells(Cell::kStates > 1 && g.grad_cells),
          packed(traversal.packed),
          resets(traversal.resets),
          clips(g.grad_clip > 0),
          most(static_cast<T>(g.grad_clip)),
          hidden(g.hidden),
          to_h(entering_h(g, Cell::kSaved)),
          to_c(entering_c(g, Cell::kSaved)) {
      pace(g, traversal);
    }
    FUSED_RNN_DEVICE void pace(const Args& g, const Traversal& traversal) {
      const int64_t rows = traversal.rows_to_next();
      saved = rows * g.saved_width * static_cast<int>(sizeof(Storage));
      output = rows * g.directions * g.hidden * static_cast<int>(sizeof(Storage));
      gates = output * Cell::kGates;
    }
  };
  // One more slot, for the gradients that the last step's gates pass to the initial state.
  static FUSED_RNN_DEVICE int slots(int steps) { return steps + 1; }

  FUSED_RNN_DEVICE void rest() { steps_ = {0, 0}; }
  FUSED_RNN_DEVICE void begin(const Args& g, const Arrays& a, const Traversal& traversal, int64_t b, int64_t unit) {
    const int64_t H = g.hidden, d = traversal.d, m = traversal.m;
    steps_.set(traversal, b);
    b_ = b;
    unit_ = unit;
    const int64_t own = (traversal.problem * g.batch + b) * H + unit;
    const int64_t row = traversal.first_row(traversal.number) + b;
    const int64_t by_row = (m * g.rows + row) * g.directions + d;
    saved_ = at<Storage>(g.saved, (traversal.problem * g.rows + row) * g.saved_width + unit);
    grad_output_ = at<Storage>(g.grad_output, by_row * H + unit);
    grad_cells_ = at<Storage>(g.grad_cells, by_row * H + unit);
    gates_x_ = at<Storage>(a.gates_x, by_row * Cell::kGates * H + unit);
    gates_r_ = at<Storage>(a.gates_r, by_row * Cell::kGates * H + unit);
    dh_ = *at<T>(a.dh, own);
    if (Cell::kStates > 1) dc_ = *at<T>(a.dc, own);
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i) {
      params_[i] = T(load(*at<Storage>(pick(g.weights, d).params, (m * Cell::kParams + i) * H + unit)));
      dparams_[i] = at<T>(a.params, ((traversal.problem * g.batch + b) * Cell::kParams + i) * H)[unit];
    }
  }
  FUSED_RNN_DEVICE void first_published(Storage (&published)[kPublished]) const {
    FUSED_RNN_UNROLL
    for (int j = 0; j < kPublished; ++j) published[j] = {};
  }

  FUSED_RNN_DEVICE void fetch(const Args& g, const Common& common, const Traversal& traversal, int number) {
    if (!steps_.is_active()) return;
    if (common.resets) cut_ = is_reset(g, traversal.m, traversal.d, traversal.time_of(number), b_);
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) kept_[k] = saved_[k * common.hidden];
    if (Cell::kReadsH) entered_[0] = saved_[common.to_h];
    if (Cell::kStates > 1) entered_[1] = saved_[common.to_c];
    if (common.has_output) output_ = *grad_output_;
    if (common.has_cells) cells_ = *grad_cells_;
  }

  FUSED_RNN_DEVICE void advance(const Common& common, const T* sums, Storage (&published)[kPublished]) {
    dh_ += sums[0];
    FUSED_RNN_UNROLL
    for (int j = 0; j < Cell::kGates; ++j) published[j] = {};
    if (!steps_.is_active()) return;
    Number kept[Cell::kSaved], state[kMaxStates], next[kMaxStates], dnext[kMaxStates], dstate[kMaxStates];
    Number dx[Cell::kGates], dr[Cell::kGates], dparams[Cell::kParams + 1];
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) kept[k] = load(kept_[k]);
    if (Cell::kReadsH) state[0] = load(entered_[0]);
    if (Cell::kStates > 1) state[1] = load(entered_[1]);
    T dh = dh_;
    if (common.has_output) dh += load(output_);
    if (common.clips) {
      rare();
      dh = clipped(common.most, dh);
    }
    dnext[0] = dh;
    if (Cell::kStates > 1) dnext[1] = common.has_cells ? dc_ + load(cells_) : dc_;
    Cell::advance(kept, state, next);
    Cell::backward(kept, state, next, params_, dnext, dx, dr, dstate, dparams);
    FUSED_RNN_UNROLL
    for (int j = 0; j < Cell::kGates; ++j) {
      cuda::store(dx_[j], plain(dx[j]));
      if (kOneGateGradient<Cell>)
        dr_[j] = dx_[j];
      else
        cuda::store(dr_[j], plain(dr[j]));
      published[j] = dr_[j];
    }
    dh_ = Cell::kReadsH ? plain(dstate[0]) : T(0);
    if (Cell::kStates > 1) dc_ = plain(dstate[1]);
    if (common.resets && cut_) {
      rare();
      FUSED_RNN_UNROLL
      for (int j = 0; j < Cell::kGates; ++j) published[j] = {};
      dh_ = T(0);
      if (Cell::kStates > 1) dc_ = T(0);
    }
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i) dparams_[i] += plain(dparams[i]);
  }

  FUSED_RNN_DEVICE void store(const Common& common) const {
    if (steps_.is_active())
      put(common, [](Storage& to, Storage bits) { to = bits; });
    else if (!common.packed)  // padding, which results are written to as zeros; packed input has none
      put(common, [](Storage& to, Storage) { to = {}; });
  }

  FUSED_RNN_DEVICE void move(const Common& common) {
    steps_.move();
    move_by(saved_, common.saved);
    if (common.has_output) move_by(grad_output_, common.output);
    if (common.has_cells) move_by(grad_cells_, common.output);
    move_by(gates_x_, common.gates);
    if (!kOneGateGradient<Cell>) move_by(gates_r_, common.gates);
  }

  FUSED_RNN_DEVICE void end(const Args& g, const Arrays& a, const Traversal& traversal) const {
    const int64_t row = traversal.problem * g.batch + b_, own = row * g.hidden + unit_;
    *at<T>(a.dh, own) = dh_;
    if (Cell::kStates > 1) *at<T>(a.dc, own) = dc_;
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i) at<T>(a.params, (row * Cell::kParams + i) * g.hidden)[unit_] = dparams_[i];
  }

 private:
  template <class Put>
  FUSED_RNN_DEVICE void put(const Common& common, Put put) const {
    FUSED_RNN_UNROLL
    for (int j = 0; j < Cell::kGates; ++j) {
      put(gates_x_[j * common.hidden], dx_[j]);
      if (!kOneGateGradient<Cell>) put(gates_r_[j * common.hidden], dr_[j]);
    }
  }

  ActiveSteps steps_;
  int64_t b_, unit_;
  const Storage *saved_, *grad_output_, *grad_cells_;
  Storage *gates_x_, *gates_r_;
  Storage kept_[Cell::kSaved], entered_[kMaxStates], output_, cells_, dx_[Cell::kGates], dr_[Cell::kGates];
  T dh_ = 0, dc_ = 0, dparams_[Cell::kParams + 1];
  Number params_[Cell::kParams + 1];
  bool cut_ = false;
};

}  // namespace
}  // namespace fused_rnn::cuda
