// Loads and stores the saved row (core/saved_row.h), a vector of units at a time.
#pragma once
#include "cells/cells.h"
#include "core/cell_traits.h"
#include "core/saved_row.h"
#include "cpu/passes/run.h"

namespace fused_rnn::cpu {
namespace {

static_assert(kUnitsKeptTogether % Vec<float>::kLanes == 0, "a vector of units may not be split over two groups");

template <class Cell>
FUSED_RNN_INLINE int64_t kept_at(const Layer& layer, int64_t k, int64_t unit) {
  return kept_in_groups_at(layer, Cell::kSaved, k, unit);
}

// The cell's saved values. Two vectors of bfloat16 fill a cache line; storing half a line costs as much as a whole one.
template <class Cell, class S, class V>
FUSED_RNN_INLINE void store_kept(const Layer& layer, S* saved, Units units, const V* keep) {
  if constexpr (V::kLanes == kUnitsKeptTogether && sizeof(S) * V::kLanes < kCacheLine)
    if (units.count == V::kLanes && !projected(layer)) {
      for (int k = 0; k + 1 < Cell::kSaved; k += 2)
        store_two_vectors(saved + kept_at<Cell>(layer, k, units.first), keep[k], keep[k + 1]);
      constexpr int kLast = Cell::kSaved - 1;
      if (kLast % 2 == 0) store_vector(saved + kept_at<Cell>(layer, kLast, units.first), keep[kLast]);
      return;
    }
  for (int k = 0; k < Cell::kSaved; ++k)
    store_vector(saved + kept_at<Cell>(layer, k, units.first), keep[k], units.count);
}

// The cell's saved values, and the states it read.
template <class Cell, class S, class V>
FUSED_RNN_INLINE void load_saved(const Layer& layer, const S* saved, Units units, V* keep, V* state) {
  for (int k = 0; k < Cell::kSaved; ++k)
    keep[k] = load_vector(saved + kept_at<Cell>(layer, k, units.first), units.count);
  if (Cell::kReadsH) state[0] = load_vector(saved + entering_h(layer, Cell::kSaved) + units.first, units.count);
  for (int s = 1; s < Cell::kStates; ++s)
    state[s] = load_vector(saved + entering_state(layer, Cell::kSaved, s) + units.first, units.count);
}

// Prefetches all of these, which are not cached, by fetch(address, count). `units`: of a whole panel.
template <class S, class Fetch>
FUSED_RNN_INLINE void fetch_saved(const CellTraits& cell, const Layer& layer, S* saved, Units units, bool with_h,
                                  Fetch fetch) {
  const int64_t end = units.first + units.count;
  for (int64_t u = units.first; u < end; u += kUnitsKeptTogether)
    for (int64_t k = 0; k < cell.saved; ++k)
      fetch(saved + kept_in_groups_at(layer, cell.saved, k, u), minimum(kUnitsKeptTogether, end - u));
  if (with_h) fetch(saved + entering_h(layer, cell.saved) + units.first, units.count);
  for (int64_t s = 1; s < cell.states; ++s)
    fetch(saved + entering_state(layer, cell.saved, s) + units.first, units.count);
}

// With layer norm: what is normalised, likewise.
template <class S, class Fetch>
void fetch_normalised(const CellTraits& cell, const Layer& layer, S* saved, Units units, Fetch fetch) {
  const int64_t first = normalised_x(layer, cell), blocks = (1 + cell.recurrent) * cell.gates + normalizes_c(layer);
  for (int64_t k = 0; k < blocks; ++k) fetch(saved + first + k * layer.hidden + units.first, units.count);
}

}  // namespace
}  // namespace fused_rnn::cpu
