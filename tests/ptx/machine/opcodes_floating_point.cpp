// PTX ISA 9.7.3 (Floating Point Instructions).
#include <cmath>

#include "elementwise.h"
#include "formats.h"
#include "rough.h"
#include "rounding.h"

namespace ptx {
namespace {

// 9.7.3.11 min, 9.7.3.12 max: a number rather than a NaN, and -0 is less than 0.
template <class T>
T smaller(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T larger(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}

template <class T, class F>
T unless_nan(T a, T b, F f) {
  return a != a || b != b ? bits_as<float>(kCanonicalNan) : f(a, b);
}

template <class T>
void add_all_of(Opcodes& all, const std::string& type) {
  const AddElementwise add = {all};
  const auto sum = [](T a, T b) { return a + b; };
  const auto difference = [](T a, T b) { return a - b; };
  const auto product = [](T a, T b) { return a * b; };
  add("add." + type, sum);         // 9.7.3.3
  add("sub." + type, difference);  // 9.7.3.4
  add("mul." + type, product);     // 9.7.3.5
  add_roundings(all, "add", type, sum);
  add_roundings(all, "sub", type, difference);
  add_roundings(all, "mul", type, product);
  add_roundings(all, "fma", type, [](T a, T b, T c) { return std::fma(a, b, c); });  // 9.7.3.6
  add_roundings(all, "div", type, [](T a, T b) { return a / b; });                   // 9.7.3.8
  add_roundings(all, "rcp", type, [](T a) { return T{1} / a; });                     // 9.7.3.13
  add_roundings(all, "sqrt", type, [](T a) { return std::sqrt(a); });                // 9.7.3.15
  add("abs." + type, [](T a) { return std::fabs(a); });                              // 9.7.3.9
  add("neg." + type, [](T a) { return -a; });                                        // 9.7.3.10
  add("min." + type, [](T a, T b) { return smaller(a, b); });
  add("max." + type, [](T a, T b) { return larger(a, b); });
  add("copysign." + type, [](T a, T b) { return std::copysign(b, a); });  // 9.7.3.2: the sign is a's
}

// f(a) as it is, or off by what the bound lets it; with subnormal arguments and results as they are, or flushed.
template <class F, class Off, bool kFlush, bool kRough>
struct Approximation {
  float operator()(float a) const {
    if constexpr (kFlush) a = flushed(a);
    float result = F()(a);
    if constexpr (kRough) result = Off()(result, a);
    return kFlush ? flushed(result) : result;
  }
};
template <class F, class Off, bool kFlush>
void run_approximation(Warp& w, const Instruction& i, uint32_t mask) {
  if (options.rough)
    Elementwise<Approximation<F, Off, kFlush, true>>::run(w, i, mask);
  else
    Elementwise<Approximation<F, Off, kFlush, false>>::run(w, i, mask);
}
template <class F, class Off>
void add_approximation(Opcodes& all, const std::string& name, F, Off) {
  all.add(name + ".approx.f32", run_approximation<F, Off, false>, {4});
  all.add(name + ".approx.ftz.f32", run_approximation<F, Off, true>, {4});
}

// 2^a is exact for whole numbers: CUDA's own functions of doubles count on it.
struct OffUnlessWhole {
  float operator()(float exact, float argument) const {
    return argument == std::nearbyint(argument) ? exact : OffByUnits<2>()(exact, argument);
  }
};
struct OffOfLogarithm {
  float operator()(float exact, float argument) const {
    const bool near_one = argument > 0.5f && argument < 2;
    return near_one ? OffByAbsolute{0x1p-22}(exact, argument) : OffByUnits<2>()(exact, argument);
  }
};
struct OffOfSine {
  float operator()(float exact, float argument) const { return OffByAbsolute{0x1p-21}(exact, argument); }
};
struct OffOfTanh {
  float operator()(float exact, float argument) const { return OffByRelative{0x1p-11}(exact, argument); }
};

template <class F, class Off>
void run_division(Warp& w, const Instruction& i, uint32_t mask) {
  using Exact = decltype([](float a, float b) { return F()(a, b); });
  using Rough = decltype([](float a, float b) { return Off()(F()(a, b), b); });
  (options.rough ? Elementwise<Rough>::run : Elementwise<Exact>::run)(w, i, mask);
}

void add_approximations(Opcodes& all) {
  add_approximation(all, "rcp", [](float a) { return 1 / a; }, OffByUnits<1>());          // 9.7.3.13
  add_approximation(all, "sqrt", [](float a) { return std::sqrt(a); }, OffByUnits<1>());  // 9.7.3.15
  add_approximation(
      all, "rsqrt", [](float a) { return static_cast<float>(1 / std::sqrt(double{a})); }, OffByUnits<2>());  // 9.7.3.16
  add_approximation(all, "sin", [](float a) { return std::sin(a); }, OffOfSine());                           // 9.7.3.18
  add_approximation(all, "cos", [](float a) { return std::cos(a); }, OffOfSine());                           // 9.7.3.19
  add_approximation(all, "lg2", [](float a) { return std::log2(a); }, OffOfLogarithm());                     // 9.7.3.20
  add_approximation(all, "ex2", [](float a) { return std::exp2(a); }, OffUnlessWhole());                     // 9.7.3.21
  const auto tanh = [](float a) { return std::tanh(a); };
  all.add("tanh.approx.f32", run_approximation<decltype(tanh), OffOfTanh, false>, {4});  // 9.7.3.22
  const auto quotient = [](float a, float b) { return a / b; };
  all.add("div.full.f32", run_division<decltype(quotient), OffByUnits<2>>, {4, 4});  // 9.7.3.8
  all.add("div.approx.f32", run_division<decltype(quotient), OffByUnits<2>>, {4, 4});
  // 9.7.3.14: of the upper half of argument and result.
  AddElementwise{all}("rcp.approx.ftz.f64", [](uint64_t a) {
    constexpr uint64_t kUpper = 0xffffffff00000000;
    const double argument = bits_as<double>(a & kUpper);
    const double finite =
        std::fabs(argument) < std::numeric_limits<double>::min() ? std::copysign(0.0, argument) : argument;
    return bits_as<uint64_t>(1 / finite) & kUpper;
  });
}

}  // namespace

void add_floating_point(Opcodes& all) {
  add_all_of<float>(all, "f32");
  add_all_of<double>(all, "f64");
  const AddElementwise add = {all};
  add("min.NaN.f32", [](float a, float b) { return unless_nan(a, b, smaller<float>); });
  add("max.NaN.f32", [](float a, float b) { return unless_nan(a, b, larger<float>); });
  add_approximations(all);
}

}  // namespace ptx
