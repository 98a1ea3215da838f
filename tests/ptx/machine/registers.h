// A warp's register file: 32 lanes of 4 or 8 bytes each; 16-bit values are the low half of 4 bytes. A predicate is one
// bit of each lane in 4 bytes.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "grid.h"

namespace ptx {

template <class T>
inline T get(const Warp& w, uint32_t place, int lane) {
  if constexpr (sizeof(T) >= 4)
    return reinterpret_cast<const T*>(w.file + place)[lane];
  else
    return static_cast<T>(reinterpret_cast<const uint32_t*>(w.file + place)[lane]);
}
template <class T>
inline void put(Warp& w, uint32_t place, int lane, T value) {
  if constexpr (sizeof(T) >= 4)
    reinterpret_cast<T*>(w.file + place)[lane] = value;
  else
    reinterpret_cast<uint32_t*>(w.file + place)[lane] = static_cast<std::make_unsigned_t<T>>(value);
}
inline uint32_t& predicate(const Warp& w, uint32_t place) { return *reinterpret_cast<uint32_t*>(w.file + place); }

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// f(lane) for every lane of the mask; all 32 at once where the compiler can.
template <class F>
inline void for_lanes(uint32_t mask, F f) {
  if (mask == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < 32; ++lane) f(lane);
  } else {
    for (uint32_t rest = mask; rest; rest &= rest - 1) f(__builtin_ctz(rest));
  }
}

}  // namespace ptx
