// The whole CUDA engine on the emulator and without torch, as a program that sanitizers can watch. For each engine
// named it computes small layers, forward and back, and compares all results with those of the stepwise engine, whose
// own are compared with the reference elsewhere.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/persistent.h"
#include "cuda/stepwise.h"
#include "cuda/storage.h"
#include "fail.h"

namespace fused_rnn {

void unknown_value(const char* what, int64_t value) { fail("unknown ", what, " ", value); }
// Not compiled: it is bfloat16's with another rounding.
void launch_half(const Plan&, const Forward&, const ForwardArrays&, const Cut&, int64_t, void*) { fail("half"); }
void launch_half(const Plan&, const Backward&, const BackwardArrays&, const Cut&, int64_t, void*) { fail("half"); }

namespace {

double number(Dtype dtype, const void* numbers, int64_t i) {
  if (dtype == Dtype::kDouble) return static_cast<const double*>(numbers)[i];
  if (dtype == Dtype::kFloat) return static_cast<const float*>(numbers)[i];
  return load(static_cast<const BFloat16*>(numbers)[i]);
}
void put(Dtype dtype, void* numbers, int64_t i, double value) {
  if (dtype == Dtype::kDouble)
    static_cast<double*>(numbers)[i] = value;
  else if (dtype == Dtype::kFloat)
    static_cast<float*>(numbers)[i] = static_cast<float>(value);
  else
    store(static_cast<BFloat16*>(numbers)[i], static_cast<float>(value));
}
Dtype arithmetic(Dtype dtype) { return dtype == Dtype::kDouble ? dtype : Dtype::kFloat; }

}  // namespace

// ---- torch's part --------------------------------------------------------------------------------------------------

Product::Product(const Machine&, Dtype dtype, const Sizes& sizes, const Matrices& a, const Matrices& b,
                 const Result& result)
    : sizes_(sizes),
      a_{const_cast<void*>(a.data), {a.batch_stride, a.row_stride, a.column_stride}, static_cast<int>(dtype)},
      b_{const_cast<void*>(b.data), {b.batch_stride, b.row_stride, b.column_stride}, static_cast<int>(dtype)},
      result_{result.data,
              {result.batch_stride, result.row_stride, 1},
              static_cast<int>(result.format == Format::kStorage ? dtype : arithmetic(dtype))} {}

void Product::run() {
  const auto dtype = [](const torch::stable::Tensor& t) { return static_cast<Dtype>(t.dtype); };
  const auto place = [](const torch::stable::Tensor& t, int64_t i, int64_t row, int64_t column) {
    return i * t.strides[0] + row * t.strides[1] + column * t.strides[2];
  };
  for (int64_t i = 0; i < sizes_.batch; ++i)
    for (int64_t row = 0; row < sizes_.rows; ++row)
      for (int64_t column = 0; column < sizes_.columns; ++column) {
        double sum = 0;
        for (int64_t k = 0; k < sizes_.depth; ++k)
          sum += number(dtype(a_), a_.data, place(a_, i, row, k)) * number(dtype(b_), b_.data, place(b_, i, k, column));
        put(dtype(result_), result_.data, place(result_, i, row, column), sum);
      }
}

// ---- layers --------------------------------------------------------------------------------------------------------

namespace {

enum class Rows { kAll, kPadded, kPacked };

struct Case {
  int64_t cell;
  Dtype dtype;
  Rows rows;
  int64_t directions, hidden;
  int64_t output_size;  // another than `hidden`: with a projection
  bool norms = false;
  int64_t weight_groups = 1;
  bool tangents = false;  // and what second derivatives need
};

// One layer, all of its arrays, each by itself in memory, so that AddressSanitizer sees where they end.
class Run {
 public:
  explicit Run(const Case& c) : case_(c) {}

  // Everything computed, [array][number].
  std::vector<std::vector<double>> results() {
    const Scratch scratch = [this](int64_t bytes) { return memory(bytes); };
    const Machine machine = {{}, nullptr, scratch};
    stepwise_forward(forward(), machine);
    stepwise_backward(backward(), machine);
    if (case_.tangents) {
      stepwise_forward(tangent(), machine);
      stepwise_backward(trace(), machine);
      stepwise_backward(backward_tangent(), machine);
    }
    std::vector<std::vector<double>> all;
    for (const auto& [numbers, count, dtype] : results_) {
      all.emplace_back();
      for (int64_t i = 0; i < count; ++i) all.back().push_back(number(dtype, numbers, i));
    }
    return all;
  }

 private:
  struct Result {
    void* numbers;
    int64_t count;
    Dtype dtype;
  };

  void* memory(int64_t bytes) {
    memory_.emplace_back(new unsigned char[bytes]);
    std::memset(memory_.back().get(), 0xff, bytes);  // a NaN in every dtype
    return memory_.back().get();
  }
  void* array(int64_t count) { return memory(count * number_bytes(case_.dtype)); }
  void* random(int64_t count) {
    void* const numbers = array(count);
    for (int64_t i = 0; i < count; ++i) put(case_.dtype, numbers, i, normal_(generator_));
    return numbers;
  }
  void* result(int64_t count) {
    results_.push_back({array(count), count, case_.dtype});
    return results_.back().numbers;
  }

  Forward& forward() {
    const int64_t T = kSteps, B = kBatch, I = kInputs, D = case_.directions, H = case_.hidden, P = case_.output_size;
    const CellTraits cell = traits_of(case_.cell);
    Forward& f = forward_;
    static_cast<Layer&>(f) = {case_.cell, case_.dtype, 0, 1, D, T, B, 0, I, H, P, cell.saved * H + P};
    if (cell.states > 1) f.saved_width += H;
    static constexpr int64_t kLengths[kBatch] = {5, 3, 1}, kOffsets[kSteps] = {0, 3, 5, 7, 8};  // of packed rows
    f.rows = case_.rows == Rows::kPacked ? 9 : T * B;
    if (case_.rows != Rows::kAll) f.lengths = kLengths;
    if (case_.rows == Rows::kPacked) f.offsets = kOffsets;
    static constexpr uint8_t kReset[kSteps * kBatch] = {0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0};
    f.reset = kReset;
    f.input = random(f.rows * I);
    f.input_member_stride = f.rows * I;
    f.h0 = random(D * B * P);
    if (cell.states > 1) f.c0 = random(D * B * H);
    const int64_t GH = cell.gates * H;
    for (int64_t d = 0; d < D; ++d)
      f.weights[d] = {random(GH * I), random(GH * P), random(GH), random(GH), P == H ? nullptr : random(P * H), {}};
    f.output = result(f.rows * D * P);
    f.h_n = result(D * B * P);
    if (cell.states > 1) f.c_n = result(D * B * H);
    if (cell.states > 1) f.cells = result(f.rows * D * H);
    f.saved = array(D * f.rows * f.saved_width);
    return f;
  }

  Backward& backward() {
    const int64_t B = kBatch, I = kInputs, D = case_.directions, H = case_.hidden, P = case_.output_size;
    const CellTraits cell = traits_of(case_.cell);
    Backward& g = backward_;
    static_cast<Layer&>(g) = forward_;
    g.saved = forward_.saved;
    g.grad_output = random(g.rows * D * P);
    g.grad_h_n = random(D * B * P);
    if (cell.states > 1) g.grad_c_n = random(D * B * H);
    if (cell.states > 1) g.grad_cells = random(g.rows * D * H);
    g.weight_groups = case_.weight_groups;
    g.grad_input = result(g.rows * I);
    g.grad_h0 = result(D * B * P);
    if (cell.states > 1) g.grad_c0 = result(D * B * H);
    const int64_t KGH = g.weight_groups * cell.gates * H;
    for (int64_t d = 0; d < D; ++d)
      g.grads[d] = {result(KGH * I),
                    result(KGH * P),
                    result(KGH),
                    result(KGH),
                    P == H ? nullptr : result(g.weight_groups * P * H),
                    nullptr};
    const Dtype wide = arithmetic(case_.dtype);
    const int64_t norms = case_.norms ? D * cell.states * kSteps : 0;
    if (norms > 0) results_.push_back({g.grad_norms = memory(norms * number_bytes(wide)), norms, wide});
    return g;
  }

  // Of the forward pass, which has run.
  Forward& tangent() {
    Forward& f = tangent_;
    f = forward_;
    const int64_t gates = f.rows * f.directions * traits_of(f.cell).gates * f.hidden;
    f.input = nullptr;
    f.primal = forward_.saved;
    f.tangent_x = random(gates);
    f.tangent_r = random(gates);
    if (projected(f)) f.tangent_h = random(f.rows * f.directions * f.output_size);
    f.saved = array(f.directions * f.rows * f.saved_width);
    return f;
  }

  Backward& trace() {
    Backward& g = backward_;
    const CellTraits cell = traits_of(g.cell);
    const int64_t gates = g.rows * g.directions * cell.gates * g.hidden;
    // Of padding the engine writes nothing here, and nobody reads it.
    g.trace_x = array(gates);
    g.trace_r = cell.one_gate_gradient ? nullptr : array(gates);
    g.trace_states = array(g.rows * g.directions * cell.states * g.hidden);
    g.trace_output = projected(g) ? array(g.rows * g.directions * g.output_size) : nullptr;
    return g;
  }

  Backward& backward_tangent() {
    Backward& g = tangent_back_;
    g = backward_;
    g.trace_x = g.trace_r = g.trace_states = g.trace_output = nullptr;
    g.saved_tangent = tangent_.saved;
    g.traced_states = backward_.trace_states;
    g.added_h = random(g.rows * g.directions * g.output_size);
    if (projected(g)) g.added_wide = random(g.rows * g.directions * g.hidden);
    return g;
  }

  static constexpr int64_t kSteps = 5, kBatch = 3, kInputs = 2;

  const Case case_;
  Forward forward_ = {}, tangent_ = {};
  Backward backward_ = {}, tangent_back_ = {};
  std::mt19937 generator_{0};
  std::normal_distribution<double> normal_{0, 0.3};
  std::vector<std::unique_ptr<unsigned char[]>> memory_;
  std::vector<Result> results_;
};

std::vector<std::vector<double>> run(const std::string& engine, const Case& c) {
  setenv("FUSED_RNN_CUDA_ENGINE", engine.c_str(), 1);
  return Run(c).results();
}

// The larger of the norms' ratios, of all arrays; NaN when any number is.
double difference(const std::vector<std::vector<double>>& found, const std::vector<std::vector<double>>& expected) {
  double most = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    double error = 0, norm = 0;
    for (size_t j = 0; j < found[i].size(); ++j) {
      error += std::pow(found[i][j] - expected[i][j], 2);
      norm += std::pow(expected[i][j], 2);
    }
    const double ratio = std::sqrt(error / norm);
    if (!(ratio <= most)) most = ratio;
  }
  return most;
}

std::vector<Case> cases(const std::string& engine) {
  if (engine == "stepwise")
    return {{0, Dtype::kFloat, Rows::kPadded, 2, 5, 3, true, 3},
            {1, Dtype::kBFloat16, Rows::kPacked, 2, 33, 33},
            {1, Dtype::kDouble, Rows::kAll, 1, 5, 5, true},
            {0, Dtype::kFloat, Rows::kPadded, 2, 5, 3, false, 1, true},
            {1, Dtype::kDouble, Rows::kPacked, 2, 5, 5, false, 1, true}};
  // As many units as make two blocks of the backward pass, where one must not hold all.
  const int64_t hidden = engine == "one" ? 5 : 18, directions = 1 + (engine == "one" || engine == "cluster");
  std::vector<Case> all = {{0, Dtype::kFloat, Rows::kPadded, directions, hidden, hidden},
                           {1, Dtype::kFloat, Rows::kPacked, directions, hidden, hidden}};
  if (engine != "flags") all.push_back({0, Dtype::kBFloat16, Rows::kAll, 1, hidden, hidden});
  if (engine != "polling") all.push_back({1, Dtype::kDouble, Rows::kAll, 1, hidden, hidden});
  return all;
}

}  // namespace
}  // namespace fused_rnn

int main(int count, char** engines) {
  using namespace fused_rnn;
  for (int i = 1; i < count; ++i)
    for (const Case& c : cases(engines[i])) try {
        const double found = difference(run(engines[i], c), run("stepwise", c));
        if (found <= (c.dtype == Dtype::kBFloat16 ? 0.02 : c.dtype == Dtype::kFloat ? 1e-5 : 1e-12)) continue;
        std::fprintf(stderr, "%s: wrong result, by %g\n", engines[i], found);
        return 1;
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", engines[i], error.what());
        return 1;
      }
}
