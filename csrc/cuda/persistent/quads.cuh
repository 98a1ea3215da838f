// Blocks publish quads: all numbers of four units of one column, held by four neighbouring lanes. Along K, 16-bit
// numbers of an even number of gates are ordered unit by unit, so that two make a word; others gate by gate, four units
// each. kPublished: numbers per unit.
#pragma once
#include "cuda/persistent/arithmetic.cuh"

namespace fused_rnn::cuda {
namespace {

template <class S>
FUSED_RNN_FN constexpr bool unit_by_unit(int published) {
  return sizeof(S) == 2 && published % 2 == 0;
}

// kRuns contiguous runs of packs: a chunk may end between two gates.
template <class S, int kPublished>
struct Quad {
  static constexpr int kNumberBytes = sizeof(S), kNumbers = 4 * kPublished,
                       kRuns = kChunk % kNumbers == 0 ? 1 : kPublished;
  static constexpr int kRunBytes = kNumbers / kRuns * sizeof(S), kWords = kRunBytes < 16 ? 2 : 4;
  static constexpr int kPacks = kRunBytes / (4 * kWords);
  Pack<kWords> pack[kRuns][kPacks];

  FUSED_RNN_DEVICE uint32_t& word(int i) { return pack[i / (kPacks * kWords)][i / kWords % kPacks].word[i % kWords]; }
};

// NaNs are canonicalized, as a word of all ones means "not yet written" (exchange.cuh). A pair of 16-bit numbers never is.
template <class S>
FUSED_RNN_DEVICE Pack<sizeof(S) / 4> words_of_number(S own) {
  Pack<sizeof(S) / 4> quiet_nan = {};
  quiet_nan.word[sizeof(S) / 4 - 1] = 0x7fffff00u;
  return own == own ? bits_as<Pack<sizeof(S) / 4>>(own) : quiet_nan;
}

// All-gather within each group of four lanes; called by all lanes of a warp.
template <class S, int kPublished>
FUSED_RNN_DEVICE Quad<S, kPublished> gather_quad(const S (&own)[kPublished]) {
  Quad<S, kPublished> quad;
  const auto gather = [&](int first, int stride, uint32_t word) {
    quad.word(first) = word_of_four<0>(word);
    quad.word(first + stride) = word_of_four<1>(word);
    quad.word(first + 2 * stride) = word_of_four<2>(word);
    quad.word(first + 3 * stride) = word_of_four<3>(word);
  };
  if constexpr (unit_by_unit<S>(kPublished)) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < kPublished / 2; ++i)
      gather(i, kPublished / 2, own[2 * i].bits | uint32_t{own[2 * i + 1].bits} << 16);
  } else if constexpr (sizeof(S) == 2) {
    const bool odd = lane_of_warp() & 1, high = lane_of_warp() & 2;
    FUSED_RNN_UNROLL
    for (int gate = 0; gate < kPublished; ++gate) {
      const uint32_t bits = own[gate].bits, other = word_across<1>(bits);
      const uint32_t pair = odd ? other | bits << 16 : bits | other << 16, far = word_across<2>(pair);
      quad.word(2 * gate) = high ? far : pair;
      quad.word(2 * gate + 1) = high ? pair : far;
    }
  } else {
    constexpr int kWords = sizeof(S) / 4;
    FUSED_RNN_UNROLL
    for (int gate = 0; gate < kPublished; ++gate) {
      const Pack<kWords> words = words_of_number(own[gate]);
      FUSED_RNN_UNROLL
      for (int w = 0; w < kWords; ++w) gather(4 * gate * kWords + w, kWords, words.word[w]);
    }
  }
  return quad;
}

}  // namespace
}  // namespace fused_rnn::cuda
