// How a forward pass computes its products, depending on the layer's size and the plan.
#pragma once
#include "cpu/gemm/int8.h"
#include "cpu/passes/forward/panels.h"
#include "cpu/schedule/tuning.h"

namespace fused_rnn::cpu {
namespace {

template <class Shape, class S>
struct ForwardChoices {
  using E = Element<S>;
  static constexpr int kUnits = GatePanels<Shape, Arithmetic<S>>::kUnits;

  // Pack W_ih, unless the input is a tangent's, or ids that look up few columns of a large vocabulary.
  static bool packs_input(const Forward& f, const Plan& plan) {
    if (f.tokens && !f.packed && f.rows * kPackedColumnsPerLookUp < f.input_size) return false;
    return plan.packs() && !f.primal;
  }

  // How W_ih is read.
  static Reading reading_of_input(const Forward& f, const Plan& plan) {
    if (!plan.packs()) return plan.weights;
    return packs_input(f, plan) ? Reading::kPacked : Reading::kRows;
  }

  // Accumulate W_ih x and W_hh h into one sum: on tiles, where the epilogue then overlaps twice as many products, if
  // the weights fit L2. Otherwise W_ih is read once for several steps. The last kOwnSums gates keep W_hh h separate
  // (Shape::kSharedGates).
  static constexpr int kOwnSums = Shape::kGates - Shape::kSharedGates;
  static constexpr bool kMayFuse =
      kTiles<E> && Shape::kRecurrent && Shape::kGates + kOwnSums <= kMostVectors && (kUnits == 1 || kOwnSums == 0);
  static bool fuses(const Forward& f, const Plan& plan) {
    return kMayFuse && plan.packs() && !f.tokens && !f.primal && !normalizes(f) &&
           Shape::kGates * f.hidden * (f.input_size + f.output_size) <= kMostWeightsToFuse;
  }

  // Read W_ih and W_hh together, panel by panel: a few rows of a single step are memory-bound, and the next call, which
  // sweeps in the other direction (next_direction, gemm/panels.h), finds the last panels cached.
  // Weights of 8 bits are small, and rows are quantized once for all panels.
  static bool reads_together(const Forward& f) {
    return !kQuantized<S> && f.steps == 1 && f.batch < kLeastRowsReadApart && !f.primal && !normalizes(f);
  }

  // The number of steps for which W_ih x is computed at once.
  static int64_t steps_ahead(const Forward& f, const Plan& plan) {
    constexpr int64_t kRows = kParts<E> > 1 ? kAheadRowsSplit : kAheadRows;
    return minimum(f.steps, maximum(1, kRows / maximum(1, largest_part(f.batch, plan.row_chunks))));
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
