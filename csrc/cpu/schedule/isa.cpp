#include "cpu/schedule/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/schedule/tile_support.h"
#include "cpu/schedule/tuning.h"

#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)
#include <cpuid.h>
#elif defined(FUSED_RNN_ARM_ISAS) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fused_rnn::cpu {
namespace {

#ifdef FUSED_RNN_X86_ISAS
bool has_avx_vnni() {
#ifdef __linux__  // GCC before 13 cannot be asked
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni);
#else
  return false;
#endif
}
#endif

#ifdef FUSED_RNN_ARM_ISAS
#ifdef __linux__  // headers of older systems lack some of these bits
bool has_dot_products() { return getauxval(AT_HWCAP) & (1ul << 20); }
bool has_int8_matrices() { return getauxval(AT_HWCAP2) & (1ul << 13); }
bool has_bfloat16() { return getauxval(AT_HWCAP2) & (1ul << 14); }
#else
bool has_dot_products() { return false; }
bool has_int8_matrices() { return false; }
bool has_bfloat16() { return false; }
#endif
#endif

bool is_supported(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#ifdef FUSED_RNN_X86_ISAS  // what -march=x86-64-v3 and -v4 enable, as far as it can be queried
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    case Isa::kAvxVnni:
      return is_supported(Isa::kAvx2) && has_avx_vnni();
    case Isa::kAvx512:
      return is_supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Vnni:
      return is_supported(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Bf16:
      return is_supported(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx:
      return is_supported(Isa::kAvx512Bf16) && tile_support().bfloat16;
#endif
#ifdef FUSED_RNN_ARM_ISAS
    case Isa::kNeonDot:
      return has_dot_products();
    case Isa::kNeonI8Mm:
      return has_dot_products() && has_int8_matrices();
    case Isa::kNeonBf16:
      return has_bfloat16();
#endif
    default:
      return false;
  }
}

// Best first.
#ifdef FUSED_RNN_ARM_ISAS
constexpr Isa kIsas[] = {Isa::kNeonBf16, Isa::kNeonI8Mm, Isa::kNeonDot, Isa::kBaseline};
#else
constexpr Isa kIsas[] = {Isa::kAmx,     Isa::kAvx512Bf16, Isa::kAvx512Vnni, Isa::kAvx512,
                         Isa::kAvxVnni, Isa::kAvx2,       Isa::kBaseline};
#endif

// Of the engine for weights of 8 bits, whose products on tiles need other instructions.
bool is_supported_for_int8(Isa isa) {
  if (isa == Isa::kAmx) return is_supported(Isa::kAvx512Vnni) && tile_support().bytes;
  return is_supported(isa);
}

// The best one for weights of 8 bits that is no better than `isa`, or what FUSED_RNN_ISA asks for.
Isa isa_for_int8(Isa isa, WeightFormat format) {
  for (const Isa other : {Isa::kNeonI8Mm, Isa::kNeonDot, Isa::kAmx, Isa::kAvx512Vnni, Isa::kAvxVnni, Isa::kAvx2}) {
    const bool has_kernels = other != Isa::kAmx || format == WeightFormat::kInt8;
    if (other <= isa && has_kernels && is_supported_for_int8(other)) return other;
  }
  return Isa::kBaseline;
}

std::string asked_isa() {
  const char* variable = std::getenv("FUSED_RNN_ISA");
  return variable ? variable : "";
}

Isa find_isa() {
  const std::string asked = asked_isa();
  for (const Isa isa : kIsas) {
    if (asked.empty() && is_supported(isa)) return isa;
    if (asked != isa_name(isa)) continue;
    if (is_supported(isa)) return isa;
    throw std::runtime_error("FUSED_RNN_ISA=" + asked + " is not supported by this processor or build");
  }
  std::string names;
  for (const Isa isa : kIsas)
    names += std::string(isa == Isa::kBaseline ? " or " : names.empty() ? "" : ", ") + isa_name(isa);
  throw std::runtime_error("FUSED_RNN_ISA must be " + names + ", got '" + asked + "'");
}

}  // namespace

Isa best_isa() {
  static const Isa isa = find_isa();
  return isa;
}

std::span<const Isa> isas_for(Dtype dtype, WeightFormat format, int64_t gates) {
  static const Isa best[] = {best_isa()}, for_int8[] = {isa_for_int8(best[0], WeightFormat::kInt8)};
  static const Isa for_int8_weights[] = {isa_for_int8(best[0], WeightFormat::kInt8WeightsOnly)};
  static constexpr Isa kBaseline[] = {Isa::kBaseline}, kAvx2[] = {Isa::kAvx2}, kVectors[] = {Isa::kAvx512},
                       kPairs[] = {Isa::kAvx512Bf16}, kAndTiles[] = {Isa::kAvx512, Isa::kAmx};
  if (format == WeightFormat::kInt8) return for_int8;
  if (format == WeightFormat::kInt8WeightsOnly) return for_int8_weights;
  if (best[0] <= Isa::kAvx2) return best;
  if (best[0] == Isa::kAvxVnni) return kAvx2;
  const bool fits_tiles = gates <= kMostVectors;
  if (best[0] >= Isa::kNeonDot) {
    if (best[0] == Isa::kNeonBf16 && dtype == Dtype::kBFloat16 && fits_tiles) return best;
    return kBaseline;
  }
  const bool has_own = best[0] == Isa::kAvx512Bf16 || best[0] == Isa::kAmx;
  if (has_own && dtype == Dtype::kBFloat16) {
    if (!fits_tiles) return kPairs;
    return best;
  }
  if (best[0] != Isa::kAmx || dtype != Dtype::kFloat || !fits_tiles) return kVectors;
  static const bool always = !asked_isa().empty();
  if (always) return best;
  return kAndTiles;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvxVnni:
      return "avx_vnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
    case Isa::kNeonDot:
      return "neon_dot";
    case Isa::kNeonI8Mm:
      return "neon_i8mm";
    case Isa::kNeonBf16:
      return "neon_bf16";
  }
  return "unknown";
}

const Kernels& kernels_for(Isa isa, Dtype dtype) {
#ifdef FUSED_RNN_X86_ISAS
  if (isa == Isa::kAmx) return dtype == Dtype::kBFloat16 ? kKernelsAmxBf16 : kKernelsAmxFp32;
  if (isa == Isa::kAvx512Bf16) return kKernelsAvx512Bf16;
  if (isa == Isa::kAvx512) return kKernelsAvx512;
  if (isa == Isa::kAvx2) return kKernelsAvx2;
#endif
#ifdef FUSED_RNN_ARM_ISAS
  if (isa == Isa::kNeonBf16) return kKernelsNeonBf16;
#endif
  (void)isa, (void)dtype;
  return kKernelsBaseline;
}

const Int8Kernels& int8_kernels_for(Isa isa) {
#ifdef FUSED_RNN_X86_ISAS
  if (isa == Isa::kAmx) return kInt8KernelsAmxInt8;
  if (isa == Isa::kAvx512Vnni) return kInt8KernelsAvx512Vnni;
  if (isa == Isa::kAvxVnni) return kInt8KernelsAvxVnni;
  if (isa == Isa::kAvx2) return kInt8KernelsAvx2;
#endif
#ifdef FUSED_RNN_ARM_ISAS
  if (isa == Isa::kNeonI8Mm) return kInt8KernelsNeonI8Mm;
  if (isa == Isa::kNeonDot) return kInt8KernelsNeonDot;
#endif
  (void)isa;
  return kInt8KernelsBaseline;
}

}  // namespace fused_rnn::cpu
