// Checks every cell against the contract of csrc/cells/cells.h. Prints one line per cell and check, "cell check number":
// the worst error or the count of violations, which test_contract.py compares with its limit.
#include <math.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "every_cell.h"
#include "float8.h"

namespace fused_rnn {
namespace {

using simd::Float8;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kDelta = 1e-5;
constexpr int kDraws = 2000;

// A scalar is a vector of one lane.
template <class T>
constexpr int kLanesOf = 1;
template <>
constexpr int kLanesOf<Float8> = simd::kLanes;

template <class T>
T& lane(T& x, int) {
  return x;
}
float& lane(Float8& x, int i) { return x.lane[i]; }

// The inputs of one step of one unit, and the gradients of its results.
template <class Cell>
struct Inputs {
  double x[Cell::kGates], r[Cell::kGates], state[Cell::kStates], params[Cell::kParams + 1], gradient[Cell::kStates];
};

// A step and its backward. Outputs start as NaN, and each has one element more than the cell may write.
template <class Cell, class T>
struct Step {
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kSaved = Cell::kSaved, kParams = Cell::kParams;

  T x[kGates], r[kGates], state[kStates], params[kParams + 1];
  T state_next[kStates + 1], saved[kSaved + 1], advanced[kStates + 1];
  T dstate_next[kStates + 1], dx[kGates + 1], dr[kGates + 1], dstate[kStates + 1], dparams[kParams + 1];

  explicit Step(const Inputs<Cell>* inputs) {
    for (int i = 0; i < kLanesOf<T>; ++i) {
      const Inputs<Cell>& in = inputs[i];
      for (int g = 0; g < kGates; ++g) lane(x[g], i) = in.x[g];
      for (int g = 0; g < kGates; ++g) lane(r[g], i) = in.r[g];
      for (int s = 0; s < kStates; ++s) lane(state[s], i) = in.state[s];
      for (int p = 0; p < kParams; ++p) lane(params[p], i) = in.params[p];
    }
    each_output([](T* array, int count, bool) { std::fill_n(array, count + 1, T(kNan)); });
    for (int i = 0; i < kLanesOf<T>; ++i)
      for (int s = 0; s < kStates; ++s) lane(dstate_next[s], i) = inputs[i].gradient[s];

    // A cell without parameters must not read any.
    const T* const given = kParams ? params : nullptr;
    Cell::forward(x, r, state, given, state_next, saved);
    Cell::advance(saved, state, advanced);
    Cell::backward(saved, state, state_next, given, dstate_next, dx, dr, dstate, kParams ? dparams : nullptr);
  }

  // Calls f(array, elements the cell may write, does it write them?).
  template <class F>
  void each_output(F f) {
    f(state_next, kStates, true);
    f(saved, kSaved, true);
    f(advanced, kStates, true);
    f(dstate_next, kStates, true);
    f(dx, kGates, true);
    f(dr, kGates, Cell::kRecurrent);
    f(dstate, kStates, true);
    f(dparams, kParams, true);
  }

  // Everything that the step wrote, as one list.
  std::vector<double> outputs(int i = 0) {
    std::vector<double> all;
    each_output([&](T* array, int count, bool written) {
      for (int k = 0; written && k < count; ++k) all.push_back(lane(array[k], i));
    });
    return all;
  }
};

// Largest |a - b| / (1 + |b|); infinity if either is NaN.
double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = ::fabs(a[i] - b[i]) / (1 + ::fabs(b[i]));
    worst = std::max(worst, isfinite(error) ? error : std::numeric_limits<double>::infinity());
  }
  return worst;
}

// Whether a and b are bitwise equal.
bool same(const std::vector<double>& a, const std::vector<double>& b) { return distance(a, b) == 0; }

template <class Cell>
struct Check {
  const char* name;
  std::mt19937 random{0};

  void report(const char* check, double value) const { printf("%s %s %.3g\n", name, check, value); }

  // Float values, so that float and double start equal. Saturated: biases of +-120.
  Inputs<Cell> draw(bool saturated) {
    std::normal_distribution<float> normal(0.f, 1.5f);
    Inputs<Cell> in;
    for (int g = 0; g < Cell::kGates; ++g) {
      do {
        in.x[g] = normal(random);
        in.r[g] = normal(random);
      } while (::fabs(in.x[g] + in.r[g]) < 1e-2);  // no finite difference across a kink
      if (saturated) in.x[g] += 120. * (int(random() % 3) - 1);
    }
    for (double& s : in.state) s = normal(random);
    for (double& p : in.params) p = normal(random);
    for (double& d : in.gradient) d = normal(random);
    return in;
  }

  static double loss(const Inputs<Cell>& in) {
    Step<Cell, double> step(&in);
    double sum = 0;
    for (int s = 0; s < Cell::kStates; ++s) sum += in.gradient[s] * step.state_next[s];
    return sum;
  }

  // The derivative of f(in) by one of `in`'s numbers.
  template <class F>
  static double difference(Inputs<Cell>& in, double& number, F f) {
    const double kept = number;
    number = kept + kDelta;
    const double above = f(in);
    number = kept - kDelta;
    const double below = f(in);
    number = kept;
    return (above - below) / (2 * kDelta);
  }

  double finite_differences(bool saturated) {
    double worst = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      Inputs<Cell> in = draw(saturated);
      Step<Cell, double> step(&in);
      std::vector<double> found, expected;
      const auto compare = [&](double* numbers, const double* gradients, int count) {
        for (int i = 0; i < count; ++i) {
          found.push_back(gradients[i]);
          expected.push_back(difference(in, numbers[i], loss));
        }
      };
      compare(in.x, step.dx, Cell::kGates);
      if (Cell::kRecurrent) compare(in.r, step.dr, Cell::kGates);
      compare(in.state, step.dstate, Cell::kStates);
      compare(in.params, step.dparams, Cell::kParams);
      worst = std::max(worst, distance(found, expected));
    }
    return worst;
  }

  // Tangents of saved values, states and gradients, along any direction but the parameters'.
  double tangents(bool saturated) {
    double worst = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      const Inputs<Cell> in = draw(saturated);
      Inputs<Cell> change = draw(false);
      for (double& p : change.params) p = 0;
      Step<Cell, double> step(&in);
      const auto moved = [&](double by) {
        Inputs<Cell> there = in;
        for (int g = 0; g < Cell::kGates; ++g) there.x[g] += by * change.x[g];
        for (int g = 0; g < Cell::kGates; ++g) there.r[g] += by * change.r[g];
        for (int s = 0; s < Cell::kStates; ++s) there.state[s] += by * change.state[s];
        for (int s = 0; s < Cell::kStates; ++s) there.gradient[s] += by * change.gradient[s];
        return Step<Cell, double>(&there);
      };
      Step<Cell, double> above = moved(kDelta), below = moved(-kDelta);

      using D = Dual<double>;
      double kept[Cell::kSaved];
      D saved[Cell::kSaved], state[Cell::kStates], next[Cell::kStates], params[Cell::kParams + 1],
          gradient[Cell::kStates];
      D dx[Cell::kGates], dr[Cell::kGates], dstate[Cell::kStates], dparams[Cell::kParams + 1];
      Cell::tangent(step.saved, step.state, step.params, change.x, change.r, change.state, kept);
      for (int k = 0; k < Cell::kSaved; ++k) saved[k] = {step.saved[k], kept[k]};
      for (int s = 0; s < Cell::kStates; ++s) state[s] = {step.state[s], change.state[s]};
      for (int s = 0; s < Cell::kStates; ++s) gradient[s] = {in.gradient[s], change.gradient[s]};
      for (int p = 0; p < Cell::kParams; ++p) params[p] = {step.params[p], 0.};
      D x[Cell::kGates], r[Cell::kGates], next_again[Cell::kStates], saved_again[Cell::kSaved];
      for (int g = 0; g < Cell::kGates; ++g) x[g] = {in.x[g], change.x[g]};
      for (int g = 0; g < Cell::kGates; ++g) r[g] = {in.r[g], change.r[g]};
      Cell::forward(x, r, state, params, next_again, saved_again);
      Cell::advance(saved, state, next);
      Cell::backward(saved, state, next, params, gradient, dx, dr, dstate, dparams);

      std::vector<double> found, expected;
      const auto compare = [&](const D* dual, double* above, double* below, int count) {
        for (int i = 0; i < count; ++i) {
          found.push_back(dual[i].tangent);
          expected.push_back((above[i] - below[i]) / (2 * kDelta));
        }
      };
      compare(saved_again, above.saved, below.saved, Cell::kSaved);
      compare(saved, above.saved, below.saved, Cell::kSaved);
      compare(next, above.state_next, below.state_next, Cell::kStates);
      compare(gradient, above.dstate_next, below.dstate_next, Cell::kStates);
      compare(dx, above.dx, below.dx, Cell::kGates);
      if (Cell::kRecurrent) compare(dr, above.dr, below.dr, Cell::kGates);
      compare(dstate, above.dstate, below.dstate, Cell::kStates);
      compare(dparams, above.dparams, below.dparams, Cell::kParams);
      worst = std::max(worst, distance(found, expected));
    }
    return worst;
  }

  // The gradient that backward leaves in dstate_next. Nothing leads on from h_next inside the step; c enters the step
  // through c_next alone, so that dloss/dc = dloss/dc_next * dc_next/dc.
  double whole_gradient(bool saturated) {
    double worst = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      Inputs<Cell> in = draw(saturated);
      Step<Cell, double> step(&in);
      worst = std::max(worst, ::fabs(step.dstate_next[0] - in.gradient[0]));
      if (Cell::kStates < 2) continue;
      double& c = in.state[Cell::kStates - 1];
      const double through_c_next =
          difference(in, c, [](const Inputs<Cell>& i) { return Step<Cell, double>(&i).state_next[Cell::kStates - 1]; });
      const double whole = step.dstate_next[Cell::kStates - 1];
      worst = std::max(worst, distance({whole * through_c_next}, {difference(in, c, loss)}));
    }
    return worst;
  }

  // How often advance() and forward differ in a bit of the states.
  template <class T>
  int advance() {
    int wrong = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      const Inputs<Cell> in = draw(draws % 2);
      const Step<Cell, T> step(&in);
      for (int s = 0; s < Cell::kStates; ++s) wrong += !(step.advanced[s] == step.state_next[s]);
    }
    return wrong;
  }

  // Lanes that differ in a bit from scalar float.
  int vector() {
    int wrong = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      std::vector<Inputs<Cell>> in;
      for (int i = 0; i < simd::kLanes; ++i) in.push_back(draw(draws % 2));
      Step<Cell, Float8> step(in.data());
      for (int i = 0; i < simd::kLanes; ++i) wrong += !same(step.outputs(i), Step<Cell, float>(&in[i]).outputs());
    }
    return wrong;
  }

  double precision(bool saturated) {
    double worst = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      const Inputs<Cell> in = draw(saturated);
      worst = std::max(worst, distance(Step<Cell, float>(&in).outputs(), Step<Cell, double>(&in).outputs()));
    }
    return worst;
  }

  // Outputs that are not written, and writes where there is no output.
  int written() {
    const Inputs<Cell> in = draw(false);
    Step<Cell, double> step(&in);
    int wrong = 0;
    step.each_output([&](double* array, int count, bool written) {
      for (int k = 0; k < count; ++k) wrong += isnan(array[k]) == written;
      wrong += !isnan(array[count]);
    });
    return wrong;
  }

  // Gates whose NaN is lost before h_next.
  template <class T>
  int lost_nans() {
    int lost = 0;
    for (int g = 0; g < Cell::kGates; ++g) {
      Inputs<Cell> in = draw(false);
      in.x[g] = kNan;
      lost += !isnan(Step<Cell, T>(&in).state_next[0]);
    }
    return lost;
  }

  // How often each of the contract's promises is broken.
  int recurrent() {
    int wrong = 0;
    for (int g = 0; g < Cell::kGates; ++g) {
      Inputs<Cell> in = draw(false);
      in.r[g] = kNan;
      wrong += isnan(Step<Cell, double>(&in).state_next[0]) != Cell::kRecurrent;
    }
    return wrong;
  }
  int shared_gates() {
    constexpr int kShared = Cell::kSharedGates;
    int different = 0, next_different = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      const Inputs<Cell> in = draw(draws % 2);
      const Step<Cell, float> step(&in);
      different += Cell::kRecurrent && !std::equal(step.dx, step.dx + kShared, step.dr);
      next_different += kShared < Cell::kGates && step.dx[kShared] != step.dr[kShared];
    }
    return different + (kShared < Cell::kGates && next_different == 0);
  }
  int reads_h() {
    int changed = 0, gradients = 0;
    for (int draws = 0; draws < kDraws; ++draws) {
      Inputs<Cell> in = draw(draws % 2);
      Step<Cell, double> step(&in);
      gradients += step.dstate[0] != 0;
      in.state[0] = kNan;
      changed += !same(Step<Cell, double>(&in).outputs(), step.outputs());
    }
    if (Cell::kReadsH) return Cell::kProjectable || changed == 0;
    return changed + gradients;
  }

  void run() {
    report("finite_differences", finite_differences(false));
    report("finite_differences_saturated", finite_differences(true));
    report("whole_gradient", whole_gradient(false));
    report("whole_gradient_saturated", whole_gradient(true));
    report("tangents", tangents(false));
    report("tangents_saturated", tangents(true));
    report("advance_float", advance<float>());
    report("advance_double", advance<double>());
    report("vector", vector());
    report("precision", precision(false));
    report("precision_saturated", precision(true));
    report("written", written());
    report("lost_nans_float", lost_nans<float>());
    report("lost_nans_double", lost_nans<double>());
    report("recurrent", recurrent());
    report("shared_gates", shared_gates());
    report("reads_h", reads_h());
  }
};

}  // namespace
}  // namespace fused_rnn

int main() {
#define CHECK(id, Cell) fused_rnn::Check<fused_rnn::Cell>{#Cell}.run();
  EVERY_CELL(CHECK)
}
