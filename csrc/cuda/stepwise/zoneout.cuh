// Zoneout: after a step some units keep their former state or, in evaluation, a part of it.
#pragma once
#include "cuda/device/each_unit.cuh"

namespace fused_rnn::cuda {
namespace {

// How much of state k a unit keeps: 0 or 1 by the mask, else the probability.
template <class T>
FUSED_RNN_DEVICE T kept_share(const Layer& layer, const Place& p, int64_t states, int k, int64_t unit) {
  if (!layer.zoneout_mask) return static_cast<T>(layer.zoneout[k > 0]);
  return T(layer.zoneout_mask[(p.by_row(layer) * states + k) * layer.hidden + unit] != 0);
}

// Of the cell's results or their tangents, if there is zoneout. What a mask passes over may be infinite.
template <class Cell, class T>
FUSED_RNN_DEVICE void keep_former(const Forward& f, const Place& p, int64_t unit, const T* state, T* next) {
  if (!f.zones_out) return;
  FUSED_RNN_UNROLL
  for (int k = 0; k < Cell::kStates; ++k) {
    const T share = kept_share<T>(f, p, Cell::kStates, k, unit);
    next[k] = !f.zoneout_mask ? next[k] + share * (state[k] - next[k]) : share > 0 ? state[k] : next[k];
  }
}

// Takes from the states' gradients, dnext, what goes to the former states, past the cell.
template <class Cell, class T>
FUSED_RNN_DEVICE void split(const Backward& g, const Place& p, int64_t unit, T* dnext, T* past) {
  FUSED_RNN_UNROLL
  for (int k = 0; k < Cell::kStates; ++k) {
    past[k] = dnext[k] * kept_share<T>(g, p, Cell::kStates, k, unit);
    dnext[k] -= past[k];
  }
}

}  // namespace
}  // namespace fused_rnn::cuda
