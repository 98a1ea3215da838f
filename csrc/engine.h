// What a device offers the operators. An engine adds itself when the library is loaded; a device without one is an
// error.
#pragma once
#include <torch/headeronly/core/DeviceType.h>

#include <functional>

#include "problem.h"

namespace fused_rnn {

// Returns that many bytes of scratch memory on the engine's device, alive until the call ends.
using Scratch = std::function<void*(int64_t bytes)>;

struct Engine {
  void (*forward)(const Forward&, const Scratch&);
  void (*backward)(const Backward&, const Scratch&);
};

void add_engine(torch::headeronly::DeviceType device, const Engine& engine);
const Engine& engine_for(torch::headeronly::DeviceType device);

}  // namespace fused_rnn
