// The kernels of cells that plug-ins bring (core/registry.h).
#pragma once
#include "cpu/schedule/isa.h"

namespace fused_rnn::cpu {

// Throws if they were not compiled.
const Kernels& kernels_of_own(int64_t cell, Isa isa, Dtype dtype);

}  // namespace fused_rnn::cpu
