// How one call is spread over the machine. Chosen by `select`, carried out by the kernels.
#pragma once
#include <stdint.h>

namespace fused_rnn::cpu {

enum class Isa : int { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

struct Plan {
  Isa isa;
  int64_t threads;
  // Each problem is cut into runs of batch rows, which walk through time without ever meeting, and each run's hidden
  // units into shares, which meet after every step.
  int64_t row_chunks, unit_chunks;
  const int64_t* order;  // [1 or M, B]: batch rows as runs take them, see Run; null: as they come
  bool pack;             // weights into panels; else, for a step or two, the forward pass reads them as they are
};

}  // namespace fused_rnn::cpu
