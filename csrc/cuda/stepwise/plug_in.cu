// A plug-in with a cell's kernels for CUDA, and all that it exports. Not a part of the library: fused_rnn/own/cuda.py
// compiles it when a registered cell is first run there. FUSED_RNN_OWN_DTYPE: the number of a Dtype.
#include <tuple>

#include "core/dispatch.h"
#include "core/export.h"
#include "cuda/stepwise/of_cell.cuh"
#include "cuda/stepwise/plug_in.h"

namespace fused_rnn {

// Only a bug gets here: the library calls a plug-in for its own cell alone.
void unknown_value(const char*, int64_t) { __builtin_trap(); }

}  // namespace fused_rnn

FUSED_RNN_EXPORT const void* fused_rnn_cuda_plug_in() {
  using namespace fused_rnn;
  using namespace fused_rnn::cuda;
  using Storage =
      std::tuple_element_t<FUSED_RNN_OWN_DTYPE, std::tuple<float, double, BFloat16, Half>>;  // as Dtype has them
  static const PlugIn kPlugIn = {kPlugInLayout, FUSED_RNN_OWN_ID, traits_of(FUSED_RNN_OWN_ID),
                                 static_cast<Dtype>(FUSED_RNN_OWN_DTYPE), &kLaunches<Own, Storage>};
  return &kPlugIn;
}
