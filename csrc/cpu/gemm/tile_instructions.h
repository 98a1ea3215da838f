// The instructions of AMX, each for tile registers known to the compiler. Tests compile the engine with another file of
// this name, which computes in software what these do (tests/cpu/software_tiles/).
#pragma once
#include <stdint.h>

#include "cpu/gemm/tile_setup.h"
#include "cpu/simd/vector.h"

namespace fused_rnn::cpu {
namespace {

inline void configure_tiles(const TileSetup& setup) { asm volatile("ldtilecfg %0" ::"m"(setup)); }
inline void release_tiles() { asm volatile("tilerelease"); }

template <int kTile>
FUSED_RNN_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
FUSED_RNN_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
FUSED_RNN_INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}

// kTo += kA kB: pairs of bfloat16, summed in float.
template <int kTo, int kA, int kB>
FUSED_RNN_INLINE void add_bfloat16_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}
// kTo += kA kB: fours of unsigned by signed bytes, summed in 32 bits.
template <int kTo, int kA, int kB>
FUSED_RNN_INLINE void add_byte_products() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace fused_rnn::cpu
