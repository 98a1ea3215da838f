// The kernels of cells that plug-ins bring (core/registry.h).
#pragma once
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {

// Throws if they were not compiled.
const CellLaunches& launches_of_own(int64_t cell, Dtype dtype);

}  // namespace fused_rnn::cuda
