#include <atomic>

#include "cuda/host/passes.h"
#include "cuda/host/persistent_runs.h"

namespace fused_rnn::cuda {
namespace {

std::atomic<int64_t> ahead_bytes = kAheadBytes;

class ForwardLoop : Arrays {
 public:
  ForwardLoop(const Forward& f, const Machine& machine)
      : Arrays(f, machine),
        f_(f),
        on_device_(on_device(f)),
        cell_(traits_of_any(f.cell)),
        launches_(launches_of(f.cell, f.dtype)),
        times_(f),
        persistent_(f, Direction::kForward, machine) {}

  void run() {
    begin();
    persistent_ ? run_persistent() : run_stepwise();
    if (cell_.states > 1 && is_wide())
      copy(f_.c_n, Format::kStorage, arrays_.c, Format::kArithmetic, problems_ * f_.batch * further_width());
  }

 private:
  static constexpr Format kS = Format::kStorage, kT = Format::kArithmetic;

  void run_persistent() {
    for (int64_t first = 0; first < f_.steps; first += steps_ahead_) {
      const int64_t end = std::min(f_.steps, first + steps_ahead_);
      project_inputs(first, end);
      persistent_.run(arrays_, first, end);
    }
  }

  void run_stepwise() {
    StepProduct recurrent = recurrent_product(), projection = projection_product();
    for (int64_t number = 0; number < f_.steps; ++number) {
      if (number % steps_ahead_ == 0 && !f_.primal) project_inputs(number, std::min(f_.steps, number + steps_ahead_));
      const Step step = times_.step(number, false);
      if (f_.reset && !f_.primal && launches_.restart) launches_.restart(on_device_, step, arrays_, machine_.stream);
      if (cell_.recurrent) recurrent.run(step.rows);
      if (normalizes(f_)) launch_normalise(on_device_, step, arrays_, initial(0) == 0, machine_.stream);
      launches_.forward_step(on_device_, step, arrays_, machine_.stream);
      if (normalizes_c(f_)) launch_normed_h(on_device_, step, arrays_, machine_.stream);
      if (!projected(f_)) continue;
      projection.run(step.rows);
      launch_forward_projection(on_device_, step, arrays_, machine_.stream);
    }
  }

  int64_t gate_rows() const { return cell_.gates * f_.hidden; }
  int64_t further_width() const { return (cell_.states - 1) * f_.hidden; }  // W
  double initial(int64_t state) const { return f_.primal ? 0 : launches_.initial[state]; }

  void begin() {
    const int64_t QB = problems_ * f_.batch, a_step = problems_ * f_.batch * gate_rows() * bytes(kT);
    steps_ahead_ = std::clamp<int64_t>(ahead_bytes.load() / std::max<int64_t>(a_step, 1), 1, f_.steps);
    arrays_.x_rows = steps_ahead_ * f_.batch;
    if (!f_.primal) arrays_.x = take(kT, problems_ * arrays_.x_rows * gate_rows());
    if (cell_.recurrent && !persistent_) arrays_.r = take(kT, QB * gate_rows());
    arrays_.h = f_.h_n;  // updated in place, so that it ends as the result
    begin_state(arrays_.h, kS, f_.h0, 0, f_.output_size, f_.output_size, initial(0));
    if (f_.h_factor) {
      arrays_.masked_h = take(kS, QB * f_.output_size);
      launch_mask(f_.dtype, {QB * f_.output_size, arrays_.masked_h, arrays_.h, f_.h_factor}, machine_.stream);
    }
    if (cell_.states > 1) arrays_.c = is_wide() ? take(kT, QB * further_width()) : f_.c_n;
    for (int64_t state = 1; state < cell_.states; ++state)
      begin_state(arrays_.c, kT, f_.c0, (state - 1) * f_.hidden, f_.hidden, further_width(), initial(state));
    for (void** of_c : {&arrays_.new_c, &arrays_.gate})
      if (normalizes_c(f_)) *of_c = take(kT, QB * f_.hidden);
    if (!projected(f_)) return;
    arrays_.wide_h = take(kS, QB * f_.hidden);
    arrays_.projected = take(kT, QB * f_.output_size);
  }

  // W_ih x for a chunk of steps at once, as it does not depend on h.
  void project_inputs(int64_t first, int64_t end) {
    const int64_t I = f_.input_size, GH = gate_rows();
    for (int64_t d = 0; d < f_.directions; ++d) {
      const int64_t row = times_.first_row(d == 0 ? first : f_.steps - end);
      const int64_t rows = times_.first_row(d == 0 ? end : f_.steps - first) - row;
      const Matrices input = {offset(f_.input, kS, row * I), f_.input_member_stride, I, 1};
      const Matrices ih = {f_.weights[d].ih, GH * I, I, 1};
      void* const x = offset(const_cast<void*>(arrays_.x), kT, d * arrays_.x_rows * GH);
      arrays_.x_first_row[d] = row;
      if (f_.tokens) {
        launch_look_up(on_device_, {d, GH, row, rows, x, f_.directions * arrays_.x_rows * GH}, machine_.stream);
        continue;
      }
      Product(machine_, f_.dtype, {f_.members, rows, I, GH}, input, ih.transposed(),
              {x, kT, f_.directions * arrays_.x_rows * GH, GH})
          .run();
    }
  }

  StepProduct recurrent_product() {
    const int64_t B = f_.batch, P = f_.output_size, GH = gate_rows();
    const Matrices h = {f_.h_factor ? arrays_.masked_h : arrays_.h, B * P, P, 1};
    const Matrices hh = cell_.recurrent ? weights(&Weights::hh, GH, P) : Matrices{};
    return StepProduct([=, this](int64_t rows) {
      return Product(machine_, f_.dtype, {problems_, rows, P, GH}, h, hh.transposed(),
                     {const_cast<void*>(arrays_.r), kT, B * GH, GH});
    });
  }

  StepProduct projection_product() {
    const int64_t B = f_.batch, H = f_.hidden, P = f_.output_size;
    const Matrices wide = {arrays_.wide_h, B * H, H, 1};
    const Matrices hr = projected(f_) ? weights(&Weights::hr, P, H) : Matrices{};
    return StepProduct([=, this](int64_t rows) {
      return Product(machine_, f_.dtype, {problems_, rows, H, P}, wide, hr.transposed(),
                     {const_cast<void*>(arrays_.projected), kT, B * P, P});
    });
  }

  const Forward& f_;
  const Forward on_device_;
  const CellTraits cell_;
  const CellLaunches& launches_;
  const Times times_;
  const PersistentRuns<Forward, ForwardArrays> persistent_;
  ForwardArrays arrays_ = {};
  int64_t steps_ahead_ = 1;
};

}  // namespace

void run_forward(const Forward& f, const Machine& machine) {
  raise_report(f.device);
  ForwardLoop(f, machine).run();
}

int64_t set_ahead_bytes(int64_t bytes) { return ahead_bytes.exchange(bytes); }

}  // namespace fused_rnn::cuda
