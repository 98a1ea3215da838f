// A cell's constants (cells/cells.h) at run time, for code that is compiled once for all cells.
#pragma once
#include <stdint.h>

namespace fused_rnn {

// Python reads the fields by position (fused_rnn/ops/library.py).
struct CellTraits {
  int64_t gates, states, saved, params, shared_gates;
  int64_t recurrent, reads_h, projectable, one_gate_gradient, output_gate;  // 0 or 1
};

}  // namespace fused_rnn
