// Blocks publish by quads: all numbers of four units of one column, which four neighbouring lanes have. Along K, 16-bit
// numbers of an even count of gates lie unit by unit, as two of them are a word; others gate by gate, the four units
// side by side. kShown: numbers per unit.
#pragma once
#include "cuda/persistent/arithmetic.cuh"

namespace fused_rnn::cuda {
namespace {

template <class S>
FUSED_RNN_FN constexpr bool unit_by_unit(int shown) {
  return sizeof(S) == 2 && shown % 2 == 0;
}

// As many runs of packs, each of which lies in one piece: a chunk may end between two gates.
template <class S, int kShown>
struct Quad {
  static constexpr int kNumberBytes = sizeof(S), kNumbers = 4 * kShown, kRuns = kChunk % kNumbers == 0 ? 1 : kShown;
  static constexpr int kRunBytes = kNumbers / kRuns * sizeof(S), kWords = kRunBytes < 16 ? 2 : 4;
  static constexpr int kPacks = kRunBytes / (4 * kWords);
  Pack<kWords> pack[kRuns][kPacks];

  FUSED_RNN_DEVICE uint32_t& word(int i) { return pack[i / (kPacks * kWords)][i / kWords % kPacks].word[i % kWords]; }
};

// A word of a NaN is never all ones, which stands for "not yet written" (exchange.cuh); nor are two 16-bit numbers.
template <class S>
FUSED_RNN_DEVICE Pack<sizeof(S) / 4> words_of_number(S own) {
  Pack<sizeof(S) / 4> quiet_nan = {};
  quiet_nan.word[sizeof(S) / 4 - 1] = 0x7fffff00u;
  return own == own ? bits_as<Pack<sizeof(S) / 4>>(own) : quiet_nan;
}

// All lanes of a warp call; every one of four gets all that they have.
template <class S, int kShown>
FUSED_RNN_DEVICE Quad<S, kShown> gather_quad(const S (&own)[kShown]) {
  Quad<S, kShown> quad;
  const auto gather = [&](int first, int stride, uint32_t word) {
    quad.word(first) = word_of_four<0>(word);
    quad.word(first + stride) = word_of_four<1>(word);
    quad.word(first + 2 * stride) = word_of_four<2>(word);
    quad.word(first + 3 * stride) = word_of_four<3>(word);
  };
  if constexpr (unit_by_unit<S>(kShown)) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < kShown / 2; ++i) gather(i, kShown / 2, own[2 * i].bits | uint32_t{own[2 * i + 1].bits} << 16);
  } else if constexpr (sizeof(S) == 2) {
    const bool odd = lane_of_warp() & 1, high = lane_of_warp() & 2;
    FUSED_RNN_UNROLL
    for (int gate = 0; gate < kShown; ++gate) {
      const uint32_t bits = own[gate].bits, other = word_across<1>(bits);
      const uint32_t pair = odd ? other | bits << 16 : bits | other << 16, far = word_across<2>(pair);
      quad.word(2 * gate) = high ? far : pair;
      quad.word(2 * gate + 1) = high ? pair : far;
    }
  } else {
    constexpr int kWords = sizeof(S) / 4;
    FUSED_RNN_UNROLL
    for (int gate = 0; gate < kShown; ++gate) {
      const Pack<kWords> words = words_of_number(own[gate]);
      FUSED_RNN_UNROLL
      for (int w = 0; w < kWords; ++w) gather(4 * gate * kWords + w, kWords, words.word[w]);
    }
  }
  return quad;
}

}  // namespace
}  // namespace fused_rnn::cuda
