// How one call is divided among threads. Chosen by `select`.
#pragma once
#include <stdint.h>

namespace fused_rnn::cpu {

enum class Isa : int;  // isa.h

struct Plan {
  Isa isa;
  int64_t threads;
  // Each problem is split into runs of batch rows, which are independent, and each run's hidden units into shares, with
  // a barrier after every step.
  int64_t row_chunks, unit_chunks;
  const int64_t* order;  // [1 or M, B]: batch rows in the order of runs (passes/run.h); null: unchanged
  bool pack;             // pack the weights; otherwise (a step or two) the forward pass reads them unpacked
};

}  // namespace fused_rnn::cpu
