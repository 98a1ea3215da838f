// Masks of zoneout: counter-based random numbers, so that they do not depend on the number of threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "ops/arguments.h"
#include "ops/memory.h"
#include "ops/ops.h"

namespace fused_rnn {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): number n of the sequence that starts at `seed`.
uint64_t random_word(uint64_t seed, uint64_t n) {
  uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

constexpr int64_t kWords = 64, kNumbers = kWords * 4;  // at once

}  // namespace

Tensor zoneout_mask(Tensor seed, int64_t rows, int64_t states, int64_t hidden, int64_t h_bound, int64_t c_bound) {
  FUSED_RNN_CHECK(seed.numel() == 1 && seed.scalar_type() == torch::headeronly::ScalarType::Long,
                  "fused_rnn: seed must be one int64");
  FUSED_RNN_CHECK(rows >= 0 && states > 0 && hidden > 0, "fused_rnn: a mask needs rows, states and hidden units");
  const int64_t width = states * hidden, count = rows * width, blocks = (count + kNumbers - 1) / kNumbers;
  Tensor mask = new_tensor(seed, {rows, width}, torch::headeronly::ScalarType::Bool);
  uint64_t start;
  memcpy(&start, seed.data_ptr(), sizeof start);
  auto* const to = static_cast<uint8_t*>(mask.data_ptr());
  torch::stable::parallel_for(0, blocks, 64, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      uint64_t words[kWords];
      int16_t numbers[kNumbers];
      uint8_t below[kNumbers];  // bytes of `to` might be anything's, which would keep the comparison from vectors
      for (int64_t w = 0; w < kWords; ++w) words[w] = random_word(start, block * kWords + w);
      memcpy(numbers, words, sizeof words);
      const int64_t first = block * kNumbers, last = std::min(count, first + kNumbers);
      for (int64_t i = first; i < last;) {  // units of one state
        const int64_t state = i % width / hidden, stop = std::min(last, i + hidden - i % hidden);
        const auto bound = static_cast<int16_t>(state == 0 ? h_bound : c_bound);
        for (int64_t k = i - first; k < stop - first; ++k) below[k] = numbers[k] < bound;
        i = stop;
      }
      memcpy(to + first, below, last - first);
    }
  });
  return mask;
}

}  // namespace fused_rnn
