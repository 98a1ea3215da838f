// What a plug-in hands to the library: the launches of one cell's kernels for one dtype, compiled from plug_in.cu.
#pragma once
#include "core/plug_in.h"
#include "core/registry.h"
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {

struct PlugIn {
  int64_t layout;  // kPlugInLayout as it was compiled
  int64_t id;
  CellTraits traits;
  Dtype dtype;
  const CellLaunches* launches;
};

constexpr int64_t kPlugInLayout =
    layout_of<Layer, Forward, Backward, Step, ForwardArrays, BackwardArrays, CellLaunches, CellTraits, PlugIn>();

}  // namespace fused_rnn::cuda
