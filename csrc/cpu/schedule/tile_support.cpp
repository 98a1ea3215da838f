#include "cpu/schedule/tile_support.h"

#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fused_rnn::cpu {

TileSupport tile_support() {
#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  unsigned a, b, c, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmxTile) &&
      syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0)
    return {(d & kAmxBf16) != 0, (d & kAmxInt8) != 0};
#endif
  return {};
}

}  // namespace fused_rnn::cpu
