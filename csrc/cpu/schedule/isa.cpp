#include "cpu/schedule/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fused_rnn::cpu {
namespace {

bool has_avx_vnni() {
#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)  // GCC before 13 cannot be asked
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni);
#else
  return false;
#endif
}

// Whether the processor has AMX with bfloat16 and Linux lets this process use it: a process must request permission,
// since tile state adds 8 KiB to every thread's saved registers.
bool may_use_amx() {
#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  unsigned a, b, c, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmxBf16) && (d & kAmxTile) &&
         syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

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
      return is_supported(Isa::kAvx512Bf16) && may_use_amx();
#endif
    default:
      return false;
  }
}

// Best first.
constexpr Isa kIsas[] = {Isa::kAmx,     Isa::kAvx512Bf16, Isa::kAvx512Vnni, Isa::kAvx512,
                         Isa::kAvxVnni, Isa::kAvx2,       Isa::kBaseline};

// The best one for weights of 8 bits that is no better than `isa`, or what FUSED_RNN_ISA asks for.
Isa isa_for_int8(Isa isa) {
  for (const Isa other : {Isa::kAvx512Vnni, Isa::kAvxVnni, Isa::kAvx2})
    if (other <= isa && is_supported(other)) return other;
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
  throw std::runtime_error(
      "FUSED_RNN_ISA must be baseline, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16 or amx, got '" + asked + "'");
}

}  // namespace

Isa best_isa() {
  static const Isa isa = find_isa();
  return isa;
}

std::span<const Isa> isas_for(Dtype dtype, WeightFormat format) {
  static const Isa best[] = {best_isa()}, for_int8[] = {isa_for_int8(best[0])};
  static constexpr Isa kAvx2[] = {Isa::kAvx2}, kVectors[] = {Isa::kAvx512}, kAndTiles[] = {Isa::kAvx512, Isa::kAmx};
  if (format != WeightFormat::kOwn) return for_int8;
  if (best[0] <= Isa::kAvx2) return best;
  if (best[0] == Isa::kAvxVnni) return kAvx2;
  const bool has_own = best[0] == Isa::kAvx512Bf16 || best[0] == Isa::kAmx;
  if (has_own && dtype == Dtype::kBFloat16) return best;
  if (best[0] != Isa::kAmx || dtype != Dtype::kFloat) return kVectors;
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
  (void)isa, (void)dtype;
  return kKernelsBaseline;
}

const Int8Kernels& int8_kernels_for(Isa isa) {
#ifdef FUSED_RNN_X86_ISAS
  if (isa == Isa::kAvx512Vnni) return kInt8KernelsAvx512Vnni;
  if (isa == Isa::kAvxVnni) return kInt8KernelsAvxVnni;
  if (isa == Isa::kAvx2) return kInt8KernelsAvx2;
#endif
  (void)isa;
  return kInt8KernelsBaseline;
}

}  // namespace fused_rnn::cpu
