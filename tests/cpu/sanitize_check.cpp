// Called by test_sanitizers.py and test_aarch64.py: forward and backward passes of random layers, whose arrays end where
// the allocator's do.
//
// One kernels.cpp, or with FUSED_RNN_INT8 one int8_kernels.cpp, is compiled with this file. Tasks run one after another;
// results are looked at for numbers that nothing wrote, and written as doubles to the file that is named.
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "core/dispatch.h"
#include "core/formats.h"
#include "core/saved_row.h"

#ifdef FUSED_RNN_ONE_DTYPE  // such as float, which compiles in a quarter of the time
namespace fused_rnn {
template <class, class, class F>
auto only_one(Dtype, F f) {
  return f(Type<FUSED_RNN_ONE_DTYPE>{});
}
}  // namespace fused_rnn
#define dispatch_dtype only_one
#endif
#ifdef FUSED_RNN_INT8
#include "cpu/int8_kernels.cpp"
#else
#include "cpu/kernels.cpp"
#endif

namespace fused_rnn {
void unknown_value(const char* what, int64_t value) {
  fprintf(stderr, "unknown %s %ld\n", what, long(value));
  abort();
}
}  // namespace fused_rnn

namespace fused_rnn::cpu {
namespace {

FILE* numbers_found = nullptr;
std::mt19937_64 randoms;
int64_t between(int64_t low, int64_t high) { return low + int64_t(randoms() % uint64_t(high - low + 1)); }
bool one_in(int64_t n) { return between(1, n) == 1; }

template <class S>
class Check {
 public:
  explicit Check(Dtype dtype, int64_t cell) : traits_(traits_of(cell)) {
    b_.cell = f_.cell = cell;
    f_.dtype = dtype;
  }

  bool run() {
    choose_sizes();
    fill_in_layer();
    f_.output = results(M() * N() * D() * P());
    f_.h_n = results(M() * D() * B() * P());
    f_.c_n = traits_.states > 1 ? results(M() * D() * B() * further()) : nullptr;
    f_.cells = traits_.states > 1 && one_in(2) ? results(M() * N() * D() * further()) : nullptr;
#ifdef FUSED_RNN_INT8
    return run_int8();
#else
    return run_both();
#endif
  }

 private:
  bool results_are_written() const {
    return found(f_.output, M() * N() * D() * P()) && found(f_.h_n, M() * D() * B() * P());
  }

#ifdef FUSED_RNN_INT8
  bool run_int8() {
    f_.format = one_in(2) ? WeightFormat::kInt8 : WeightFormat::kInt8WeightsOnly;
    const Packing& packing = cpu::packing(f_.cell, f_.format);
    Forward layer = f_;  // as pack_weights knows it: without an input
    layer.tokens = nullptr;
    const int64_t bytes = (packing.bytes(layer, plan_) + 63) / 64 * 64;
    std::unique_ptr<void, decltype(&free)> packed(aligned_alloc(64, bytes), &free);
    memset(packed.get(), 0, bytes);  // as core/engine.h promises
    for (int64_t task = 0, tasks = packing.phase.count(layer, plan_); task < tasks; ++task)
      packing.phase.run(layer, plan_, packed.get(), 0, task);
    f_.packed = packed.get();
    f_.last_step = f_.steps;
    carry_out(forward(f_.cell, f_.format), f_);
    return results_are_written();
  }
#else
  bool run_both() {
    f_.saved = one_in(4) ? nullptr : results(M() * D() * N() * f_.saved_width);
    f_.last_step = f_.steps;
    carry_out(forward(f_.cell, f_.dtype), f_);
    bool written = results_are_written();
    if (f_.saved == nullptr) return written;

    static_cast<Layer&>(b_) = f_;
    b_.saved = f_.saved;
    b_.grad_output = one_in(5) ? nullptr : numbers(M() * N() * D() * P());
    b_.grad_h_n = one_in(2) ? nullptr : numbers(M() * D() * B() * P());
    b_.grad_c_n = traits_.states < 2 || one_in(2) ? nullptr : numbers(M() * D() * B() * further());
    b_.grad_input = f_.tokens || one_in(3) ? nullptr : results(M() * N() * I());
    b_.grad_h0 = results(M() * D() * B() * P());
    b_.grad_c0 = traits_.states > 1 ? results(M() * D() * B() * further()) : nullptr;
    b_.weight_groups = !f_.offsets && B() > 0 && one_in(3) ? B() : 1;
    b_.grad_clip = one_in(3) ? 0.1 : 0;
    const int64_t K = M() * b_.weight_groups, GH = traits_.gates * H();
    for (int64_t d = 0; d < D(); ++d) {
      if (one_in(6)) continue;  // of another direction only
      const bool bias = f_.weights[d].bias_ih != nullptr;
      b_.grads[d] = {results(K * GH * I()),
                     results(K * GH * P()),
                     bias ? results(K * GH) : nullptr,
                     bias ? results(K * GH) : nullptr,
                     f_.weights[d].hr ? results(K * P() * H()) : nullptr,
                     f_.weights[d].params ? results(K * traits_.params * H()) : nullptr};
    }
    carry_out(backward(b_.cell, b_.dtype), b_);
    written = written && found(b_.grad_h0, M() * D() * B() * P());
    for (int64_t d = 0; d < D(); ++d)
      written =
          written && (!b_.grads[d].hh || (found(b_.grads[d].hh, K * GH * P()) && found(b_.grads[d].ih, K * GH * I())));
    return written;
  }
#endif

  int64_t M() const { return f_.members; }
  int64_t D() const { return f_.directions; }
  int64_t N() const { return f_.rows; }
  int64_t B() const { return f_.batch; }
  int64_t I() const { return f_.input_size; }
  int64_t H() const { return f_.hidden; }
  int64_t P() const { return f_.output_size; }
  int64_t further() const { return (traits_.states - 1) * H(); }

  void choose_sizes() {
    f_.members = one_in(4) ? 2 : 1;
    f_.directions = between(1, 2);
    f_.steps = between(1, 9);
    f_.batch = one_in(8) ? between(10, 20) : between(1, 5);
    f_.input_size = one_in(10) ? 0 : between(1, 40);
    f_.hidden = one_in(6) ? between(128, 140) : between(1, 40);
    const bool has_projection = traits_.projectable && one_in(3);
    f_.output_size = has_projection ? between(1, 40) : f_.hidden;
    plan_ = {};
    plan_.threads = 1;
    plan_.row_chunks = between(1, std::min<int64_t>(f_.batch, 3));
    plan_.unit_chunks = plan_.row_chunks == 1 && f_.hidden >= 128 && one_in(2) ? 2 : 1;
    plan_.weights = static_cast<Reading>(between(0, 2));
#ifdef FUSED_RNN_INT8  // which is packed, and has no members
    f_.members = 1;
    plan_.weights = Reading::kPacked;
#endif
    for (int64_t d = 0; d < f_.directions; ++d) f_.weights[d].hr = nullptr;
    projected_ = has_projection;
  }

  void fill_in_layer() {
    f_.rows = f_.steps * f_.batch;
    if (one_in(2)) {
      int64_t* lengths = array<int64_t>(B());
      for (int64_t b = 0; b < B(); ++b) lengths[b] = between(0, f_.steps);
      if (one_in(2)) pack_rows(lengths);
      f_.lengths = lengths;
      order_rows(lengths);
    }
    if (one_in(2)) {
      uint8_t* reset = array<uint8_t>(f_.steps * B());
      for (int64_t i = 0; i < f_.steps * B(); ++i) reset[i] = one_in(4) * uint8_t(between(1, 255));
      f_.reset = reset;
    }
    if (I() > 0 && one_in(4)) {
      int64_t* ids = array<int64_t>(N());
      for (int64_t n = 0; n < N(); ++n) ids[n] = between(0, I() - 1);
      f_.tokens = ids;
    } else {
      f_.input = numbers(N() * I());
    }
    if (one_in(2)) f_.h0 = numbers(M() * D() * B() * P());
    if (f_.h0 && traits_.states > 1) f_.c0 = numbers(M() * D() * B() * further());
    const int64_t GH = traits_.gates * H();
    const bool bias = !one_in(3);
    for (int64_t d = 0; d < D(); ++d)
      f_.weights[d] = {numbers(M() * GH * I()),
                       numbers(M() * GH * P()),
                       bias ? numbers(M() * GH) : nullptr,
                       bias ? numbers(M() * GH) : nullptr,
                       projected_ ? numbers(M() * P() * H()) : nullptr,
                       traits_.params > 0 ? numbers(M() * traits_.params * H()) : nullptr,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr};
    f_.saved_width = saved_width(f_, traits_);
  }

  // Within each run by falling length, as schedule/select.cpp has them.
  void order_rows(const int64_t* lengths) {
    int64_t* order = array<int64_t>(B());
    for (int64_t b = 0; b < B(); ++b) order[b] = b;
    const int64_t C = plan_.row_chunks;
    for (int64_t c = 0; c < C; ++c)
      std::stable_sort(order + B() * c / C, order + B() * (c + 1) / C,
                       [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    plan_.order = order;
  }

  // Longest first, at least one step each, as in a PackedSequence.
  void pack_rows(int64_t* lengths) {
    for (int64_t b = 0; b < B(); ++b) lengths[b] = std::max<int64_t>(lengths[b], 1);
    std::sort(lengths, lengths + B(), std::greater<>());
    f_.steps = lengths[0];
    int64_t* offsets = array<int64_t>(f_.steps);
    f_.rows = 0;
    for (int64_t t = 0; t < f_.steps; ++t) {
      offsets[t] = f_.rows;
      for (int64_t b = 0; b < B(); ++b) f_.rows += t < lengths[b];
    }
    f_.offsets = offsets;
  }

  template <class Args>
  void carry_out(const Pass<Args>& pass, const Args& args) {
    const int64_t bytes = (pass.workspace_bytes(args, plan_) + 63) / 64 * 64;
    std::unique_ptr<void, decltype(&free)> workspace(aligned_alloc(64, bytes), &free);
    memset(workspace.get(), 0xff, bytes);
    const auto run_all = [&](const Phase<Args>(&phases)[kMostPhases], int64_t round) {
      for (const Phase<Args>& phase : phases)
        for (int64_t task = 0, tasks = phase.run ? phase.count(args, plan_) : 0; task < tasks; ++task)
          phase.run(args, plan_, workspace.get(), round, task);
    };
    const int64_t in_round = pass.steps_of_round ? pass.steps_of_round(args) : args.steps;
    const int64_t rounds = (args.steps + in_round - 1) / in_round;
    run_all(pass.first, 0);
    for (int64_t round = 0; round < rounds; ++round) run_all(pass.each, round);
    run_all(pass.last, rounds);
  }

  template <class T>
  T* array(int64_t count) {
    held_.emplace_back(malloc(count * sizeof(T)), &free);
    return static_cast<T*>(held_.back().get());
  }
  S* numbers(int64_t count) {
    S* to = array<S>(count);
    for (int64_t i = 0; i < count; ++i) store(to[i], Arithmetic<S>(between(-1000, 1000)) / Arithmetic<S>(2000));
    return to;
  }
  S* results(int64_t count) {
    S* to = array<S>(count);
    memset(static_cast<void*>(to), 0xff, count * sizeof(S));
    return to;
  }
  static bool found(const void* data, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const double x = load(static_cast<const S*>(data)[i]);
      if (x != x) return false;
      if (numbers_found) fwrite(&x, sizeof x, 1, numbers_found);
    }
    return true;
  }

  const CellTraits traits_;
  Forward f_ = {};
  Backward b_ = {};
  Plan plan_ = {};
  bool projected_ = false;
  std::vector<std::unique_ptr<void, decltype(&free)>> held_;
};

template <class S>
bool check(int64_t cases) {
  const Dtype dtype = std::is_same_v<S, double>     ? Dtype::kDouble
                      : std::is_same_v<S, BFloat16> ? Dtype::kBFloat16
                      : std::is_same_v<S, Half>     ? Dtype::kHalf
                                                    : Dtype::kFloat;
  for (int64_t n = 0; n < cases; ++n) {
    randoms.seed(n);
#ifdef FUSED_RNN_OWN_CELL
    const int64_t cell = FUSED_RNN_OWN_ID;
#else
    const int64_t cell = n % 4;
#endif
    if (Check<S>(dtype, cell).run()) continue;
    fprintf(stderr, "dtype %d, case %ld: a result was not written\n", int(dtype), long(n));
    return false;
  }
  return true;
}

}  // namespace
}  // namespace fused_rnn::cpu

// The number of layers, and the file for results, if they are wanted.
int main(int count, char** arguments) {
  using namespace fused_rnn;
  using namespace fused_rnn::cpu;
  const int64_t cases = atol(arguments[1]);
  if (count > 2) numbers_found = fopen(arguments[2], "wb");
#ifdef FUSED_RNN_INT8
  const bool right = check<float>(cases);
#elif defined(FUSED_RNN_ONE_DTYPE)
  const bool right = check<FUSED_RNN_ONE_DTYPE>(cases);
#else
  const bool right = check<float>(cases) && check<double>(cases) && check<BFloat16>(cases) && check<Half>(cases);
#endif
  if (numbers_found) fclose(numbers_found);
  return right ? 0 : 1;
}
