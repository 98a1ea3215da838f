// What plug-ins with kernels of a cell have in common, whatever they were compiled for.
#pragma once
#include <atomic>

#include "core/fail.h"
#include "core/problem.h"

namespace fused_rnn {

// Loads the kernels for a dtype, which may compile them; 0 on failure, and then the reason in `error`.
using Loader = int64_t (*)(int64_t cell, int64_t dtype, char* error, int64_t error_size);

constexpr const char* kWrongLayout =
    "fused_rnn: this plug-in was compiled from other sources than the library: build the library again";

// A number that changes with the structs that library and plug-in share.
template <class... Structs>
constexpr int64_t layout_of() {
  int64_t sum = 1;
  for (const size_t size : {sizeof(Structs)...}) sum = (sum * 1021 + static_cast<int64_t>(size)) % (int64_t{1} << 40);
  return sum;
}

// The kernels that are kept here; where there are none yet, after the loader has brought them.
template <class Kernels>
const Kernels& loaded(const std::atomic<const Kernels*>& place, const std::atomic<Loader>& loader, int64_t cell,
                      Dtype dtype, const char* where) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  const int number = static_cast<int>(dtype);
  const Kernels* found = place.load(std::memory_order_acquire);
  if (found) [[likely]]
    return *found;
  if (const Loader load = loader.load(std::memory_order_acquire)) {
    char reason[8192] = "";
    FUSED_RNN_CHECK(load(cell, number, reason, sizeof reason), reason);
    found = place.load(std::memory_order_acquire);
  }
  FUSED_RNN_CHECK(found, "fused_rnn: the cell with the id ", cell, " was not compiled for ", kNames[number], " on ",
                  where);
  return *found;
}

}  // namespace fused_rnn
