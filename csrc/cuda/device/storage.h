// Loads and stores of each storage format, converted to and from the type of arithmetic.
#pragma once
#include "core/formats.h"
#include "cuda/device/device.h"

namespace fused_rnn::cuda {
namespace {

FUSED_RNN_DEVICE float load(float x) { return x; }
FUSED_RNN_DEVICE double load(double x) { return x; }
FUSED_RNN_DEVICE float load(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
FUSED_RNN_DEVICE float load(Half x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}

FUSED_RNN_DEVICE void store(float& to, float x) { to = x; }
FUSED_RNN_DEVICE void store(double& to, double x) { to = x; }
FUSED_RNN_DEVICE void store(BFloat16& to, float x) {
#if __CUDA_ARCH__ >= 800
  uint32_t pair;  // converting two runs at full rate, converting one does not
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.f), "f"(x));
  to.bits = static_cast<uint16_t>(pair);
#else
  const uint32_t u = __float_as_uint(x);
  to.bits = x != x ? 0x7fffu : static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
#endif
}
FUSED_RNN_DEVICE void store(Half& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

}  // namespace
}  // namespace fused_rnn::cuda
