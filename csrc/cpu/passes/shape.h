// What of a cell shapes the code around its formula. Code that knows no more of it is compiled once for all cells of one
// shape, as RNNs with tanh and with ReLU are.
#pragma once
#include "core/dispatch.h"

namespace fused_rnn::cpu {
namespace {

template <CellTraits traits>
struct CellShape {
  static constexpr CellTraits kTraits = traits;
  static constexpr int kGates = int(traits.gates);
  static constexpr int kStates = int(traits.states);
  static constexpr int kSaved = int(traits.saved);
  static constexpr int kParams = int(traits.params);
  static constexpr int kSharedGates = int(traits.shared_gates);
  static constexpr bool kRecurrent = traits.recurrent != 0;
  static constexpr bool kReadsH = traits.reads_h != 0;

  static bool projects(const Layer& layer) { return traits.projectable && projected(layer); }
};
template <class Cell>
using ShapeOf = CellShape<kTraits<Cell>>;

}  // namespace
}  // namespace fused_rnn::cpu
