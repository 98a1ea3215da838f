#include "select.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../dispatch.h"

namespace fused_rnn {
namespace {

bool is_supported(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#ifdef FUSED_RNN_X86_ISAS  // all that -march=x86-64-v3 and -v4 let the compiler use, as far as it can be asked for
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    case Isa::kAvx512:
      return is_supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

constexpr Isa kIsas[] = {Isa::kAvx512, Isa::kAvx2, Isa::kBaseline};  // best first

Isa find_isa() {
  const char* variable = std::getenv("FUSED_RNN_ISA");
  const std::string asked = variable ? variable : "";
  for (const Isa isa : kIsas) {
    if (asked.empty() && is_supported(isa)) return isa;
    if (asked != isa_name(isa)) continue;
    if (is_supported(isa)) return isa;
    throw std::runtime_error("FUSED_RNN_ISA=" + asked + " is not supported by this processor or build");
  }
  throw std::runtime_error("FUSED_RNN_ISA must be baseline, avx2 or avx512, got '" + asked + "'");
}

}  // namespace

Isa best_isa() {
  static const Isa isa = find_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

const Kernels& kernels_for(Isa isa) {
#ifdef FUSED_RNN_X86_ISAS
  if (isa == Isa::kAvx512) return kKernelsAvx512;
  if (isa == Isa::kAvx2) return kKernelsAvx2;
#endif
  (void)isa;
  return kKernelsBaseline;
}

Load load_of(const Layer& layer) {
  const int64_t problems = layer.members * layer.directions;
  const int64_t gates = dispatch_cell(layer.cell, [](auto cell) { return int64_t(decltype(cell)::type::kGates); });
  return {problems, layer.batch, problems * layer.rows * gates * layer.hidden * (layer.input_size + layer.output_size)};
}

Plan select(Isa isa, const Load& load, int64_t threads) {
  // Below this a call is over before another thread has woken up.
  constexpr int64_t kWorthwhile = 250'000;
  if (load.multiply_adds < kWorthwhile) return {isa, 1, 1};
  // Problems run side by side; when there are fewer than threads, the batch of each is cut as well. Rows never meet
  // during the walk through time, so no step waits for another thread.
  const int64_t chunks = (threads + load.problems - 1) / std::max<int64_t>(load.problems, 1);
  return {isa, threads, std::clamp<int64_t>(chunks, 1, std::max<int64_t>(load.batch, 1))};
}

}  // namespace fused_rnn
