// How one call is spread over the machine. Chosen by `select`, carried out by the kernels.
#pragma once
#include <stdint.h>

namespace fused_rnn {

enum class Isa : int { kBaseline, kAvx2, kAvx512 };

struct Plan {
  Isa isa;
  int64_t threads;
  int64_t row_chunks;  // runs of batch rows that each problem is cut into; each run walks through time on its own
};

}  // namespace fused_rnn
