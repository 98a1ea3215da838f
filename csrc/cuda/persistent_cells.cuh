// One unit of one row on its way through time, forward or back: what a thread of the persistent kernel keeps of it in
// registers, and what it reads and writes at every step. The arrays are those of the stepwise engine (step_kernels.h),
// and at its end a run leaves them as that engine would.
//
//   kRows     rows of weights that make a unit's sums       kShown   numbers that a unit shows to all others
//   begin     reads the state that enters the run; what is shown before the first step
//   fetch     reads what a step needs besides the sums; nothing may wait for it, so nothing is converted
//   advance   the step: from the sums to what is shown next
//   store     its results, after others have been shown what they wait for
//   end       the state that leaves the run
#pragma once
#include "each_unit.cuh"

namespace fused_rnn {
namespace {

// A step of a run, the same for all cells of a problem.
struct Instant {
  bool exists;  // false: behind the last step of the run
  int time;
  int64_t first_row;  // where row 0 of the batch is among the layer's rows

  FUSED_RNN_DEVICE Instant(const Layer& layer, bool onward, int number, int end)
      : exists(number < end),
        time(onward ? number : static_cast<int>(layer.steps) - 1 - number),
        first_row(exists ? row_of(layer, time, 0) : 0) {}
};

// Where a cell is, besides time.
struct Coordinates {
  int64_t problem, m, d, b, unit;
  int64_t length;  // steps that the row has

  FUSED_RNN_DEVICE void set(const Layer& layer, int64_t problem_, int64_t b_, int64_t unit_) {
    problem = problem_;
    m = problem / layer.directions;
    d = problem % layer.directions;
    b = b_;
    unit = unit_;
    length = layer.lengths ? layer.lengths[m * layer.lengths_member_stride + b] : layer.steps;
  }
  FUSED_RNN_DEVICE bool takes_part(const Instant& now) const { return now.exists && now.time < length; }
  // Padding, which results are written to as zeros. Packed input has none.
  FUSED_RNN_DEVICE bool is_padding(const Layer& layer, const Instant& now) const {
    return now.exists && now.time >= length && !layer.offsets;
  }
  // Of a step that the row takes part in.
  FUSED_RNN_DEVICE bool is_cut(const Layer& layer, const Instant& now) const {
    return is_reset(layer, m, d, now.time, b);
  }
};

template <class CellType, class StorageType>
class ForwardCell {
 public:
  using Cell = CellType;
  using Storage = StorageType;
  using T = Arithmetic<Storage>;
  using Args = Forward;
  using Arrays = ForwardArrays;
  static constexpr int kRows = Cell::kGates, kShown = 1;

  struct Moment : Instant {
    FUSED_RNN_DEVICE Moment(const Args& f, int64_t problem, int number, int end)
        : Instant(f, problem % f.directions == 0, number, end) {}
  };
  static FUSED_RNN_DEVICE int slots(int steps) { return steps; }

  FUSED_RNN_DEVICE void begin(const Args& f, const Arrays& a, int64_t problem, int64_t b, int64_t unit,
                              Storage* shown) {
    const int64_t H = f.hidden;
    place_.set(f, problem, b, unit);
    const int64_t own = (problem * f.batch + b) * H + unit;
    const Weights w = pick(f.weights, place_.d);
    const int64_t gates = place_.m * Cell::kGates * H + unit;
    FUSED_RNN_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) {
      bias_x_[g] = w.bias_ih ? load(at<Storage>(w.bias_ih, gates)[g * H]) : T(0);
      bias_r_[g] = w.bias_hh ? load(at<Storage>(w.bias_hh, gates)[g * H]) : T(0);
    }
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i)
      params_[i] = load(*at<Storage>(w.params, (place_.m * Cell::kParams + i) * H + unit));
    state_[0] = load(*at<Storage>(a.h, own));
    if (Cell::kStates > 1) state_[1] = *at<T>(a.c, own);
    store_one(shown[0], state_[0]);
  }

  FUSED_RNN_DEVICE void fetch(const Args& f, const Arrays& a, const Moment& next) {
    if (!place_.takes_part(next)) return;
    cut_ = place_.is_cut(f, next);
    const int64_t row = place_.problem * a.x_rows + next.first_row + place_.b - pick(a.x_first_row, place_.d);
    const T* x = at<T>(a.x, row * Cell::kGates * f.hidden + place_.unit);
    FUSED_RNN_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) x_[g] = x[g * f.hidden];
  }

  FUSED_RNN_DEVICE void advance(const Args&, const Moment& now, const T* sums, Storage* shown) {
    if (place_.takes_part(now)) {
      T x[Cell::kGates], r[Cell::kGates], next[kMaxStates];
      FUSED_RNN_UNROLL
      for (int g = 0; g < Cell::kGates; ++g) {
        x[g] = x_[g] + bias_x_[g];
        r[g] = (cut_ ? T(0) : sums[g]) + bias_r_[g];
      }
      FUSED_RNN_UNROLL
      for (int i = 0; i < Cell::kStates; ++i) entered_[i] = cut_ ? T(0) : state_[i];
      Cell::forward(x, r, entered_, params_, next, kept_);
      state_[0] = rounded(next[0]);  // as it is stored and shown
      if (Cell::kStates > 1) state_[1] = next[1];
    }
    store_one(shown[0], state_[0]);
  }

  FUSED_RNN_DEVICE void store(const Args& f, const Arrays&, const Moment& now) const {
    const bool part = place_.takes_part(now);
    if (!part && !place_.is_padding(f, now)) return;
    const int64_t H = f.hidden, row = now.first_row + place_.b;
    const auto put = [&](Storage& to, T value) { fused_rnn::store(to, part ? value : T(0)); };
    const int64_t by_row = ((place_.m * f.rows + row) * f.directions + place_.d) * H + place_.unit;
    put(*at<Storage>(f.output, by_row), state_[0]);
    if (Cell::kStates > 1 && f.cells) put(*at<Storage>(f.cells, by_row), state_[1]);
    if (!f.saved) return;
    Storage* saved = at<Storage>(f.saved, (place_.problem * f.rows + row) * f.saved_width + place_.unit);
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) put(saved[k * H], kept_[k]);
    put(saved[entering_h(f, Cell::kSaved)], entered_[0]);
    if (Cell::kStates > 1) put(saved[entering_c(f, Cell::kSaved)], entered_[1]);
  }

  FUSED_RNN_DEVICE void end(const Args& f, const Arrays& a) const {
    const int64_t own = (place_.problem * f.batch + place_.b) * f.hidden + place_.unit;
    store_one(*at<Storage>(a.h, own), state_[0]);
    if (Cell::kStates > 1) *at<T>(a.c, own) = state_[1];
  }

 private:
  static FUSED_RNN_DEVICE void store_one(Storage& to, T value) { fused_rnn::store(to, value); }
  static FUSED_RNN_DEVICE T rounded(T value) {
    Storage stored;
    fused_rnn::store(stored, value);
    return load(stored);
  }

  Coordinates place_;
  T x_[Cell::kGates], bias_x_[Cell::kGates], bias_r_[Cell::kGates], params_[Cell::kParams + 1];
  T state_[kMaxStates], entered_[kMaxStates], kept_[Cell::kSaved];
  bool cut_;
};

template <class CellType, class StorageType>
class BackwardCell {
 public:
  using Cell = CellType;
  using Storage = StorageType;
  using T = Arithmetic<Storage>;
  using Args = Backward;
  using Arrays = BackwardArrays;
  static constexpr int kRows = 1, kShown = Cell::kGates;

  struct Moment : Instant {
    FUSED_RNN_DEVICE Moment(const Args& g, int64_t problem, int number, int end)
        : Instant(g, problem % g.directions == 1, number, end) {}
  };
  // The last one hands on what came back through the gates of the last step.
  static FUSED_RNN_DEVICE int slots(int steps) { return steps + 1; }

  FUSED_RNN_DEVICE void begin(const Args& g, const Arrays& a, int64_t problem, int64_t b, int64_t unit, Storage*) {
    const int64_t H = g.hidden;
    place_.set(g, problem, b, unit);
    const int64_t own = (problem * g.batch + b) * H + unit;
    dh_ = *at<T>(a.dh, own);
    if (Cell::kStates > 1) dc_ = *at<T>(a.dc, own);
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i) {
      params_[i] = load(*at<Storage>(pick(g.weights, place_.d).params, (place_.m * Cell::kParams + i) * H + unit));
      dparams_[i] = at<T>(a.params, ((problem * g.batch + b) * Cell::kParams + i) * H)[unit];
    }
  }

  FUSED_RNN_DEVICE void fetch(const Args& g, const Arrays&, const Moment& next) {
    if (!place_.takes_part(next)) return;
    cut_ = place_.is_cut(g, next);
    const int64_t H = g.hidden, row = next.first_row + place_.b;
    const Storage* saved = at<Storage>(g.saved, (place_.problem * g.rows + row) * g.saved_width + place_.unit);
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) kept_[k] = saved[k * H];
    if (Cell::kReadsH) entered_[0] = saved[entering_h(g, Cell::kSaved)];
    if (Cell::kStates > 1) entered_[1] = saved[entering_c(g, Cell::kSaved)];
    const int64_t by_row = ((place_.m * g.rows + row) * g.directions + place_.d) * H + place_.unit;
    grad_output_ = g.grad_output ? *at<Storage>(g.grad_output, by_row) : Storage{};
    if (Cell::kStates > 1) grad_cells_ = g.grad_cells ? *at<Storage>(g.grad_cells, by_row) : Storage{};
  }

  FUSED_RNN_DEVICE void advance(const Args& g, const Moment& now, const T* sums, Storage* shown) {
    dh_ += sums[0];
    FUSED_RNN_UNROLL
    for (int j = 0; j < Cell::kGates; ++j) store_one(shown[j], T(0));
    if (!place_.takes_part(now)) return;
    T kept[Cell::kSaved], state[kMaxStates], next[kMaxStates], dnext[kMaxStates], dstate[kMaxStates];
    T dr[Cell::kGates], dparams[Cell::kParams + 1];
    FUSED_RNN_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) kept[k] = load(kept_[k]);
    if (Cell::kReadsH) state[0] = load(entered_[0]);
    if (Cell::kStates > 1) state[1] = load(entered_[1]);
    dnext[0] = clipped(g, dh_ + load(grad_output_));
    if (Cell::kStates > 1) dnext[1] = dc_ + load(grad_cells_);
    Cell::advance(kept, state, next);
    Cell::backward(kept, state, next, params_, dnext, dx_, dr, dstate, dparams);
    FUSED_RNN_UNROLL
    for (int j = 0; j < Cell::kGates; ++j) {
      dr_[j] = kOneGateGradient<Cell> ? dx_[j] : dr[j];
      if (!cut_) store_one(shown[j], dr_[j]);
    }
    dh_ = !Cell::kReadsH || cut_ ? T(0) : dstate[0];
    if (Cell::kStates > 1) dc_ = cut_ ? T(0) : dstate[1];
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i) dparams_[i] += dparams[i];
  }

  FUSED_RNN_DEVICE void store(const Args& g, const Arrays& a, const Moment& now) const {
    const bool part = place_.takes_part(now);
    if (!part && !place_.is_padding(g, now)) return;
    const int64_t H = g.hidden, row = (place_.m * g.rows + now.first_row + place_.b) * g.directions + place_.d;
    const int64_t gates = row * Cell::kGates * H + place_.unit;
    FUSED_RNN_UNROLL
    for (int j = 0; j < Cell::kGates; ++j) {
      store_one(at<Storage>(a.gates_x, gates)[j * H], part ? dx_[j] : T(0));
      if (!kOneGateGradient<Cell>) store_one(at<Storage>(a.gates_r, gates)[j * H], part ? dr_[j] : T(0));
    }
  }

  FUSED_RNN_DEVICE void end(const Args& g, const Arrays& a) const {
    const int64_t own = (place_.problem * g.batch + place_.b) * g.hidden + place_.unit;
    *at<T>(a.dh, own) = dh_;
    if (Cell::kStates > 1) *at<T>(a.dc, own) = dc_;
    FUSED_RNN_UNROLL
    for (int i = 0; i < Cell::kParams; ++i)
      at<T>(a.params, ((place_.problem * g.batch + place_.b) * Cell::kParams + i) * g.hidden)[place_.unit] =
          dparams_[i];
  }

 private:
  static FUSED_RNN_DEVICE void store_one(Storage& to, T value) { fused_rnn::store(to, value); }

  Coordinates place_;
  Storage kept_[Cell::kSaved], entered_[kMaxStates], grad_output_, grad_cells_;
  T dh_, dc_, dx_[Cell::kGates], dr_[Cell::kGates], params_[Cell::kParams + 1], dparams_[Cell::kParams + 1];
  bool cut_;
};

}  // namespace
}  // namespace fused_rnn
