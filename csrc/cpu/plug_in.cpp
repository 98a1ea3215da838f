// The rest of a plug-in with a cell's kernels: all that it exports. Not a part of the library: fused_rnn/own/build.py
// compiles it, with kernels.cpp, when a cell is registered at run time. FUSED_RNN_OWN_KERNELS(X) lists the builds of
// kernels.cpp: X(a value of Isa, the build's name, bits of dtypes).
#include "cpu/schedule/plug_in.h"
#include "core/export.h"

namespace fused_rnn {

// Only a bug gets here: the library calls a plug-in for its own cell and dtypes alone.
void unknown_value(const char*, int64_t) { __builtin_trap(); }

namespace cpu {
namespace {

constexpr PlugInKernels kKernels[] = {
#define FUSED_RNN_BUILD(isa, name, dtypes) {Isa::isa, dtypes, &kKernels##name},
    FUSED_RNN_OWN_KERNELS(FUSED_RNN_BUILD)
#undef FUSED_RNN_BUILD
};

}  // namespace
}  // namespace cpu
}  // namespace fused_rnn

FUSED_RNN_EXPORT const void* fused_rnn_plug_in() {
  using namespace fused_rnn;
  using namespace fused_rnn::cpu;
  static const PlugIn kPlugIn = {kPlugInLayout, FUSED_RNN_OWN_ID, traits_of(FUSED_RNN_OWN_ID),
                                 sizeof kKernels / sizeof *kKernels, kKernels};
  return &kPlugIn;
}
