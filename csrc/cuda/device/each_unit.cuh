// Elementwise kernels: the mapping of threads to elements, and addressing.
#pragma once
#include "cells/cells.h"
#include "core/problem.h"
#include "core/saved_row.h"
#include "cuda/device/arrays.h"
#include "cuda/device/launch.h"
#include "cuda/device/storage.h"

namespace fused_rnn::cuda {
namespace {

// Null stays null.
template <class S>
FUSED_RNN_DEVICE const S* at(const void* array, int64_t offset) {
  return array ? static_cast<const S*>(array) + offset : nullptr;
}
template <class S>
FUSED_RNN_DEVICE S* at(void* array, int64_t offset) {
  return array ? static_cast<S*>(array) + offset : nullptr;
}

// Grid-stride loop: f(i, j, k) for i < x, j < y, k < z; consecutive threads have consecutive i.
template <class F>
FUSED_RNN_DEVICE void for_each(int64_t x, int64_t y, int64_t z, F f) {
  for (int64_t k = blockIdx.z; k < z; k += gridDim.z)
    for (int64_t j = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; j < y; j += int64_t{gridDim.y} * blockDim.y)
      for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < x; i += int64_t{gridDim.x} * blockDim.x)
        f(i, j, k);
}

// A grid of one thread for each element, up to CUDA's limits.
inline Launch one_thread_each(int64_t x, int64_t y, int64_t z, void* stream) {
  constexpr int64_t kThreads = 128, kMost = 65535;
  const int64_t width = x <= 32 ? 32 : x <= 64 ? 64 : kThreads, height = kThreads / width;
  const auto blocks = [](int64_t n, int64_t size) {
    const int64_t all = (n + size - 1) / size;
    return static_cast<unsigned>(all < kMost ? all : kMost);
  };
  return {dim3(blocks(x, width), blocks(y, height), blocks(z, 1)),
          dim3(static_cast<unsigned>(width), static_cast<unsigned>(height)), stream};
}

FUSED_RNN_FN int64_t problems(const Layer& layer) { return layer.members * layer.directions; }

// Whether h is projected; false at compile time for cells that cannot be.
template <class Cell>
FUSED_RNN_DEVICE bool is_projected(const Layer& layer) {
  return Cell::kProjectable && projected(layer);
}

// both[i], without run-time indexing: that would copy an array of kernel parameters to local memory.
template <class T>
FUSED_RNN_DEVICE T pick(const T (&both)[2], int64_t i) {
  return i == 0 ? both[0] : both[1];
}

// One row of a problem in a step.
struct Place {
  int64_t m, d;
  int64_t row;    // of [N]
  int64_t state;  // of [Q, B]
  bool exists;    // false past the end of a packed row
  bool active;

  FUSED_RNN_DEVICE Place(const Layer& layer, const Step& step, int64_t problem, int64_t b)
      : m(problem / layer.directions),
        d(problem % layer.directions),
        row(pick(step.first_row, d) + b),
        state(problem * layer.batch + b),
        exists(b < pick(step.present, d)),
        active(exists && is_active(layer, m, pick(step.time, d), b)) {}

  // Whether the state is zeroed before this step.
  FUSED_RNN_DEVICE bool is_cut(const Layer& layer, const Step& step, int64_t b) const {
    return b < pick(step.present_at_cut, d) && is_reset(layer, m, d, pick(step.time, d), b);
  }
  // Index in [M, N, D], and in [M, D, N].
  FUSED_RNN_DEVICE int64_t by_row(const Layer& layer) const { return (m * layer.rows + row) * layer.directions + d; }
  FUSED_RNN_DEVICE int64_t by_direction(const Layer& layer) const {
    return (m * layer.directions + d) * layer.rows + row;
  }
};

// Loads one unit's saved values; `saved` points to the unit's first value in the row (core/saved_row.h).
template <class Cell, class S, class T>
FUSED_RNN_DEVICE void load_saved(const Layer& layer, const S* saved, T* kept, T* state) {
  FUSED_RNN_UNROLL
  for (int k = 0; k < Cell::kSaved; ++k) kept[k] = load(saved[kept_at(layer, k, 0)]);
  if (Cell::kReadsH) state[0] = load(saved[entering_h(layer, Cell::kSaved)]);
  FUSED_RNN_UNROLL
  for (int s = 1; s < Cell::kStates; ++s) state[s] = load(saved[entering_state(layer, Cell::kSaved, s)]);
}

// Where a unit of state s >= 1 of [Q, B, W], or of a row of [M, N, D, W], is in it.
template <class Cell>
FUSED_RNN_DEVICE int64_t further(const Layer& layer, int64_t row, int s, int64_t unit) {
  return (row * (Cell::kStates - 1) + s - 1) * layer.hidden + unit;
}

// Clamps dL/dh to grad_clip; NaN stays NaN.
template <class T>
FUSED_RNN_DEVICE T clipped(T most, T dh) {
  return dh > most ? most : dh < -most ? -most : dh;
}
template <class T>
FUSED_RNN_DEVICE T clipped(const Backward& g, T dh) {
  return g.grad_clip > 0 ? clipped(static_cast<T>(g.grad_clip), dh) : dh;
}

}  // namespace
}  // namespace fused_rnn::cuda
