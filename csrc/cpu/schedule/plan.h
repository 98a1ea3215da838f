// How one call is spread over the machine. Chosen by `select`, carried out by the kernels.
#pragma once
#include <stdint.h>

namespace fused_rnn::cpu {

enum class Isa : int;  // isa.h

struct Plan {
  Isa isa;
  int64_t threads;
  // Each problem is split into runs of batch rows, which go through time without ever meeting, and each run's hidden
  // units into shares, which meet after every step.
  int64_t row_chunks, unit_chunks;
  const int64_t* order;  // [1 or M, B]: batch rows in the order runs take them (passes/run.h); null: as they come
  bool pack;             // weights into panels; if not, for a step or two, the forward pass reads them as they lie
};

}  // namespace fused_rnn::cpu
