// What a plug-in hands to the library: the kernels of one cell, compiled from kernels.cpp and plug_in.cpp.
#pragma once
#include "core/dispatch.h"
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

// A number that changes with the structs that library and plug-in share.
constexpr int64_t kPlugInLayout = [] {
  int64_t sum = 1;
  for (const size_t size : {sizeof(Layer), sizeof(Forward), sizeof(Backward), sizeof(Plan), sizeof(Kernels),
                            sizeof(Pass<Forward>), sizeof(Packing), sizeof(CellTraits), sizeof(PlugIn)})
    sum = (sum * 1021 + static_cast<int64_t>(size)) % (int64_t{1} << 40);
  return sum;
}();

}  // namespace fused_rnn::cpu
