// What a plug-in hands to the library: the kernels of one cell, compiled from kernels.cpp and plug_in.cpp.
#pragma once
#include "core/dispatch.h"
#include "core/plug_in.h"
#include "cpu/schedule/isa.h"

namespace fused_rnn::cpu {

// A build of kernels.cpp for some dtypes: bit n stands for the Dtype of number n.
struct PlugInKernels {
  Isa isa;
  int64_t dtypes;
  const Kernels* kernels;
};

struct PlugIn {
  int64_t layout;  // kPlugInLayout as it was compiled
  int64_t id;
  CellTraits traits;
  int64_t count;
  const PlugInKernels* kernels;
};

constexpr int64_t kPlugInLayout =
    layout_of<Layer, Forward, Backward, Plan, Kernels, Pass<Forward>, Packing, CellTraits, PlugIn>();

}  // namespace fused_rnn::cpu
