// What a device offers the operators. An engine adds itself when the library is loaded; a device without one is an
// error.
#pragma once
#include <torch/headeronly/core/DeviceType.h>

#include <functional>

#include "core/problem.h"

namespace fused_rnn {

// Returns that many bytes of scratch memory on the engine's device, alive until the call ends.
using Scratch = std::function<void*(int64_t bytes)>;

struct Engine {
  void (*forward)(const Forward&, const Scratch&);
  void (*backward)(const Backward&, const Scratch&);

  // Weights made ready once for many calls of forward. The layer has its cell, dtype, sizes and weights, but no rows:
  // what is packed must serve any. `packed` is 64-byte aligned, and zeroed before pack writes it.
  int64_t (*packed_bytes)(const Layer&);
  void (*pack)(const Layer&, void* packed);
  // Changes whenever pack would write something else: with the instruction set, say.
  int64_t (*packed_format)();
};

void add_engine(torch::headeronly::DeviceType device, const Engine& engine);
const Engine& engine_for(torch::headeronly::DeviceType device);

}  // namespace fused_rnn
