// A stack of layers encoded in one integer: in a call with one small step, each argument of an operator costs up to a
// hundredth of the time. Python encodes it (fused_rnn/ops/layer.py), with bit positions from ops/info.cpp.
#pragma once
#include <cstdint>

namespace fused_rnn {

// Layout of the user's tensors, as in fused_rnn/ops/layer.py.
enum Layout : int64_t {
  kTimeMajor = 0,   // input [T, B, I], states [L*D, B, P]; unbatched [T, I] and [L*D, P]; packed [rows, I]
  kBatchFirst = 1,  // input [B, T, I] with B = 1 or T = 1, which is the same in memory as [T, B, I]; or unbatched
  kOneStep = 2,     // input [B, I], states [B, H]: a single step, whose output is h
};
// Ids likewise, without I; a single step takes none.

struct StackCode {
  // In place of the id of a cell that does not fit: it is an argument of its own.
  static constexpr int64_t kOwnCell = 255;

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
