// What the lanes of a warp do together: barrier, shuffles and matrix products.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

namespace emulator {

// Every lane shows a value; returns what `lane` shows. Whole warps only.
class Exchange {
 public:
  template <class T>
  Exchange(const T& own, unsigned mask, const Place& place) : warp_(*self().warp) {
    static_assert(sizeof(T) <= Warp::kSlot);
    const unsigned all = warp_.lanes == kWarpSize ? ~0u : (1u << warp_.lanes) - 1;
    if ((mask & all) != all) fail("a warp's lanes act together or not at all here, got the mask ", mask, " at ", place);
    slots_ = warp_.slots[self().exchanges++ % 2];
    std::memcpy(slots_[self().lane], &own, sizeof own);
    warp_.barrier.wait(warp_.barrier.arrive(place), place);
  }

  template <class T>
  T shown_by(unsigned lane) const {
    if (lane >= warp_.lanes) fail("lane ", lane, " does not exist: the warp has ", warp_.lanes);
    T value;
    std::memcpy(&value, slots_[lane], sizeof value);
    return value;
  }

 private:
  Warp& warp_;
  char (*slots_)[Warp::kSlot];
};

// ---- matrix products -----------------------------------------------------------------------------------------------
// d += a * b, a 16 x K by rows, b K x 8 by columns, spread over the lanes as PTX's mma.m16n8k* says: with lane = 4g +
// q,
//   a: rows g and g + 8    b: column g    d: rows g and g + 8, columns 2q and 2q + 1
// and of the K numbers of a row of a, or of a column of b, the lane holds one word's worth at q in each half of K.

struct MmaOperands {
  uint32_t a[4], b[2];
};

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// What a word holds: how many numbers, and number i of them.
struct BFloat16Pair {
  static constexpr int kNumbers = 2;
  static float read(uint32_t word, int i) { return float_of(word >> 16 * i << 16); }
};
struct HalfPair {
  static constexpr int kNumbers = 2;
  static float read(uint32_t word, int i) {
    const uint32_t bits = word >> 16 * i & 0xffffu, exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.f : 1.f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * std::ldexp(exponent ? 1024.f + fraction : float(fraction), int(exponent ? exponent : 1) - 25);
  }
};
struct Tf32 {
  static constexpr int kNumbers = 1;
  static float read(uint32_t word, int) { return float_of(word & ~0x1fffu); }
  static uint32_t round(uint32_t bits) {
    const uint32_t infinity = 0x7f800000;
    if ((bits & infinity) == infinity) return bits & 0x7fffff ? 0x7fffffff : bits;
    return (bits + 0x1000) & ~0x1fffu;
  }
};

template <class Word>
void multiply_fragments(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Place& place) {
  constexpr int kHalf = 4 * Word::kNumbers;  // of K
  const Exchange lanes(MmaOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, ~0u, place);
  const unsigned g = self().lane / 4, q = self().lane % 4;
  for (int i = 0; i < 4; ++i) {
    const unsigned row = g + 8 * (i / 2), column = 2 * q + i % 2;
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < kHalf; ++k) {
        const unsigned holder = k / Word::kNumbers;
        const auto of_a = lanes.shown_by<MmaOperands>(row % 8 * 4 + holder);
        const auto of_b = lanes.shown_by<MmaOperands>(column * 4 + holder);
        d[i] +=
            Word::read(of_a.a[row / 8 + 2 * half], k % Word::kNumbers) * Word::read(of_b.b[half], k % Word::kNumbers);
      }
  }
}

}  // namespace emulator

// ---- CUDA's names --------------------------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = ~0u, const std::source_location& at = std::source_location::current()) {
  emulator::Exchange(0, mask, at);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, const std::source_location& at = std::source_location::current()) {
  return emulator::Exchange(value, mask, at).template shown_by<T>(lane % emulator::kWarpSize);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, const std::source_location& at = std::source_location::current()) {
  return emulator::Exchange(value, mask, at).template shown_by<T>(emulator::self().lane ^ bits);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by,
                   const std::source_location& at = std::source_location::current()) {
  const unsigned lane = emulator::self().lane + by;
  return emulator::Exchange(value, mask, at)
      .template shown_by<T>(lane < emulator::kWarpSize ? lane : emulator::self().lane);
}
