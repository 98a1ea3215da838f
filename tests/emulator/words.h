// Memory that threads of different blocks read and write without a barrier between them: 32 bits at a time are never
// torn, more may be. What else the hardware may reorder is not modelled.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "machine.h"

namespace emulator {

template <class T>
T load_words(const void* from, int order) {
  static_assert(sizeof(T) % sizeof(uint32_t) == 0);
  uint32_t words[sizeof(T) / sizeof(uint32_t)];
  for (size_t i = 0; i < sizeof(T) / sizeof(uint32_t); ++i)
    words[i] = __atomic_load_n(static_cast<const uint32_t*>(from) + i, order);
  T value;
  std::memcpy(&value, words, sizeof value);
  return value;
}

template <class T>
void store_words(void* to, const T& value, int order) {
  static_assert(sizeof(T) % sizeof(uint32_t) == 0);
  uint32_t words[sizeof(T) / sizeof(uint32_t)];
  std::memcpy(words, &value, sizeof value);
  for (size_t i = 0; i < sizeof(T) / sizeof(uint32_t); ++i)
    __atomic_store_n(static_cast<uint32_t*>(to) + i, words[i], order);
  progress();
}

}  // namespace emulator
