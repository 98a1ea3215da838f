// What a stack of layers is, in one number: where one small step is all there is to do, each argument of an operator
// costs as much as a hundredth of the call. Python writes it (fused_rnn/ops/layer.py), with the bits that it asks for.
#pragma once
#include <cstdint>

namespace fused_rnn {

// How the user's tensors are laid out; fused_rnn/ops/layer.py has the same.
enum Layout : int64_t {
  kTimeMajor = 0,   // input [T, B, I], states [L*D, B, P]; unbatched [T, I] and [L*D, P]; packed [rows, I]
  kBatchFirst = 1,  // input [B, T, I] with B = 1 or T = 1, which lies in memory as [T, B, I] does; or unbatched
  kOneStep = 2,     // input [B, I], states [B, H]: a cell's
};
// Ids are laid out likewise, without I; a cell takes none.

struct StackCode {
  static constexpr int kLayout = 0, kBias = 2, kBidirectional = 3, kCell = 4, kLayers = 12;  // first bits

  int64_t cell, num_layers;
  bool bias, bidirectional;
  int64_t layout;

  explicit StackCode(int64_t code)
      : cell(code >> kCell & ((1 << (kLayers - kCell)) - 1)),
        num_layers(code >> kLayers),
        bias(code >> kBias & 1),
        bidirectional(code >> kBidirectional & 1),
        layout(code >> kLayout & 3) {}
};

}  // namespace fused_rnn
