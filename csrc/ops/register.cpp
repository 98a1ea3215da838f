// Registers the operators for each device that this build has an engine for.
#include "ops/register.h"

STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  FUSED_RNN_IMPLEMENT_OPERATORS(m);
  m.impl("zoneout_mask", TORCH_BOX(&fused_rnn::zoneout_mask));
}
#ifdef FUSED_RNN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CUDA, m) { FUSED_RNN_IMPLEMENT_OPERATORS(m); }
#endif
