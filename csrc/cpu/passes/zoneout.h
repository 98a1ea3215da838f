// Zoneout: after a step some units keep their former state or, in evaluation, a part of it.
#pragma once
#include <string.h>

#include "cpu/passes/run.h"

namespace fused_rnn::cpu {
namespace {

// How much of state k its units keep, each: 0 or 1 by the mask, else the probability. `place`: of the row's first unit
// in an array [M, N, D, kStates*H].
template <class T>
FUSED_RNN_INLINE Vec<T> kept_share(const Layer& layer, int64_t place, int k, Units units) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  if (!layer.zoneout_mask) return Vec<T>(T(layer.zoneout[k > 0]));
  const uint8_t* const from = layer.zoneout_mask + place + k * layer.hidden + units.first;
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes = {};
  if (units.count >= kLanes)
    memcpy(&bytes, from, kLanes);
  else
    memcpy(&bytes, from, units.count);
  return Vec<T>(__builtin_convertvector(bytes, typename Vec<T>::Native));
}

// The state after zoneout. What a mask passes over may be infinite.
template <class T>
FUSED_RNN_INLINE Vec<T> zone_out(const Layer& layer, Vec<T> kept, Vec<T> former, Vec<T> next) {
  if (!layer.zoneout_mask) return next + kept * (former - next);
  return Vec<T>(kept.v > 0 ? former.v : next.v);
}

}  // namespace
}  // namespace fused_rnn::cpu
