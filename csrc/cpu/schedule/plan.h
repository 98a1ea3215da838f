// How one call is divided among threads. Chosen by `select`.
#pragma once
#include <stdint.h>

namespace fused_rnn::cpu {

enum class Isa : int;  // isa.h

// How a forward pass reads the weights: row by row, a dot product each; in panels (gemm/panels.h) that are packed block
// by block during each product; or in panels that were packed beforehand. The order of a sum is that of rows or panels.
enum class Reading : uint8_t { kRows, kBlocks, kPacked };

struct Plan {
  Isa isa;
  int64_t threads;
  // Each problem is split into runs of batch rows, which are independent, and each run's hidden units into shares, with
  // a barrier after every step.
  int64_t row_chunks, unit_chunks;
  const int64_t* order;  // [1 or M, B]: batch rows in the order of runs (passes/run.h); null: unchanged
  Reading weights;

  bool packs() const { return weights == Reading::kPacked; }
};

}  // namespace fused_rnn::cpu
