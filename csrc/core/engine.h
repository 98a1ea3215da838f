// The interface between operators and engines, one for each type of device; engines register at load.
#pragma once
#include <torch/headeronly/core/DeviceType.h>

#include <functional>

#include "core/problem.h"

namespace fused_rnn {

// Allocates scratch memory on the engine's device; freed when the call ends.
using Scratch = std::function<void*(int64_t bytes)>;

struct Engine {
  void (*forward)(const Forward&, const Scratch&);
  void (*backward)(const Backward&, const Scratch&);

  // Packs weights once for many calls of forward. Of the layer only cell, dtype, sizes and weights are set: the result
  // must serve any number of rows. `packed` is 64-byte aligned, and zeroed before pack writes it.
  int64_t (*packed_bytes)(const Layer&);
  void (*pack)(const Layer&, void* packed);
  // Identifies the layout that pack writes; it depends on the instruction set, for example.
  int64_t (*packed_format)();
  // Whether Backward's grad_h0 and grad_c0 may be null: then what leads to them alone is not computed.
  bool may_skip_initial_gradients = false;
  // Layer::segment for a wish of so many steps, 0 if the loop has no more; null where there are no segments.
  int64_t (*segment_for)(const Layer&, int64_t steps) = nullptr;
};

void add_engine(torch::headeronly::DeviceType device, const Engine& engine);
// Throws if this build has none.
const Engine& engine_for(torch::headeronly::DeviceType device);

}  // namespace fused_rnn
