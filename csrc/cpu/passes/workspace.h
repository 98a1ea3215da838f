// Small tools both passes share: scratch memory, typed pointers, the walk over rows.
#pragma once
#include <math.h>

#include "cells/cells.h"
#include "core/problem.h"
#include "cpu/gemm/amx.h"
#include "cpu/schedule/plan.h"

namespace fused_rnn::cpu {
namespace {

// Hands out aligned pieces of one buffer. With a null buffer it only measures.
class Carver {
 public:
  explicit Carver(void* buffer) : base_(static_cast<char*>(buffer)) {}

  template <class T>
  T* take(int64_t count) {
    used_ = (used_ + 63) / 64 * 64;
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += count * int64_t(sizeof(T));
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Parts of a workspace are structs whose constructor (args, plan, carver) takes what they need.
template <class Part, class Args>
int64_t size_of(const Args& args, const Plan& plan) {
  Carver measure(nullptr);
  Part part(args, plan, measure);
  return (measure.used() + 63) / 64 * 64;
}
template <class Part, class Args>
Part part_at(void* workspace, int64_t offset, const Args& args, const Plan& plan) {
  Carver carve(static_cast<char*>(workspace) + offset);
  return Part(args, plan, carve);
}

// Null stays null.
template <class S>
const S* at(const void* array, int64_t offset) {
  return array ? static_cast<const S*>(array) + offset : nullptr;
}
template <class S>
S* at(void* array, int64_t offset) {
  return array ? static_cast<S*>(array) + offset : nullptr;
}

// Piece i of [0, n) cut into `pieces` even runs starts here; piece i + 1 starts where it ends.
inline int64_t cut(int64_t n, int64_t pieces, int64_t i) { return n * i / pieces; }
inline int64_t largest_piece(int64_t n, int64_t pieces) { return (n + pieces - 1) / pieces; }

inline int64_t problems(const Layer& layer) { return layer.members * layer.directions; }

// Numbers from one row of a matrix to the next: whole vectors, and rows of 4 KiB would all fall into the same few lines
// of the first-level cache.
template <class T>
int64_t row_stride(int64_t columns) {
  const int64_t lanes = maximum(kParts<T> > 1 ? kDepthStep<T> : 1, kVectorBytes / int64_t(sizeof(T)));
  const int64_t padded = (columns + lanes - 1) / lanes * lanes;
  return padded * int64_t(sizeof(T)) % 4096 == 0 ? padded + lanes : padded;
}

// Zeros behind the first `used` numbers of a row, as far as products read it where the depth is filled up.
template <class E>
void clear_rest(E* row, int64_t used) {
  if (kDepthStep<E> > 1) zero_row_at(row, used, padded_depth<E>(used) - used);
}

// What one walk through time covers: some batch rows of one problem. Row i of the walk is batch row `batch_row(i)`. The
// rows are in order of falling length, so that those that take part in a step are always the first ones.
class Run {
 public:
  int64_t problem, m, d, rows;

  Run(const Layer& layer, const Plan& plan, int64_t number)
      : problem(number / plan.row_chunks),
        m(problem / layer.directions),
        d(problem % layer.directions),
        layer_(layer),
        first_(cut(layer.batch, plan.row_chunks, number % plan.row_chunks)),
        order_(plan.order ? plan.order + (layer.lengths_member_stride ? m * layer.batch : 0) : nullptr) {
    rows = cut(layer.batch, plan.row_chunks, number % plan.row_chunks + 1) - first_;
  }

  int64_t batch_row(int64_t i) const { return order_ ? order_[first_ + i] : first_ + i; }

  // How many rows take part in step t. `nearby`: the number for a step close to it, to begin the search at.
  int64_t active(int64_t t, int64_t nearby) const {
    if (!layer_.lengths) return rows;
    while (nearby < rows && is_active(layer_, m, t, batch_row(nearby))) ++nearby;
    while (nearby > 0 && !is_active(layer_, m, t, batch_row(nearby - 1))) --nearby;
    return nearby;
  }

 private:
  const Layer& layer_;
  int64_t first_;
  const int64_t* order_;
};
inline int64_t count_runs(const Layer& layer, const Plan& plan) { return problems(layer) * plan.row_chunks; }
inline int64_t count_walks(const Layer& layer, const Plan& plan) { return count_runs(layer, plan) * plan.unit_chunks; }

// One row of `saved`: what the cell keeps, then the states that entered the step, h [P] and c [H]. Of 16 units each all
// that is kept lies together, [H / 16, kSaved, 16]: a cell then writes and reads lines in a row, which the processor
// fetches by itself. With a projection it is [kSaved, H].
constexpr int64_t kKeptTogether = 16;
static_assert(kKeptTogether % Vec<float>::kLanes == 0, "a vector of units may not lie in two places");

template <class Cell>
FUSED_RNN_INLINE int64_t kept_at(const Layer& layer, int64_t k, int64_t unit) {
  if (projected(layer)) return k * layer.hidden + unit;
  const int64_t first = unit / kKeptTogether * kKeptTogether;
  return first * Cell::kSaved + k * minimum(kKeptTogether, layer.hidden - first) + unit - first;
}
template <class Cell>
int64_t entering_h(const Layer& layer) {
  return Cell::kSaved * layer.hidden;
}
template <class Cell>
int64_t entering_c(const Layer& layer) {
  return entering_h<Cell>(layer) + layer.output_size;
}

// What the cell keeps of some units. Two vectors of bfloat16 fill a line of the cache: the half of one costs as much.
template <class Cell, class S, class V>
FUSED_RNN_INLINE void store_kept(const Layer& layer, S* saved, int64_t unit, int64_t units, const V* keep) {
  if constexpr (V::kLanes == kKeptTogether && sizeof(S) * V::kLanes < kCacheLine)
    if (units == V::kLanes && !projected(layer)) {
      for (int k = 0; k + 1 < Cell::kSaved; k += 2)
        store_two_vectors(saved + kept_at<Cell>(layer, k, unit), keep[k], keep[k + 1]);
      constexpr int kLast = Cell::kSaved - 1;
      if (kLast % 2 == 0) store_vector(saved + kept_at<Cell>(layer, kLast, unit), keep[kLast]);
      return;
    }
  for (int k = 0; k < Cell::kSaved; ++k) store_vector(saved + kept_at<Cell>(layer, k, unit), keep[k], units);
}

// Some units of it all.
template <class Cell, class S, class V>
FUSED_RNN_INLINE void load_saved(const Layer& layer, const S* saved, int64_t unit, int64_t units, V* keep, V* state) {
  for (int k = 0; k < Cell::kSaved; ++k) keep[k] = load_vector(saved + kept_at<Cell>(layer, k, unit), units);
  if (Cell::kReadsH) state[0] = load_vector(saved + entering_h<Cell>(layer) + unit, units);
  if (Cell::kStates > 1) state[1] = load_vector(saved + entering_c<Cell>(layer) + unit, units);
}
// fetch(where, how many numbers) for all of that: it lies in memory that no cache holds.
template <class Cell, class S, class Fetch>
void for_saved(const Layer& layer, S* saved, int64_t unit, int64_t units, bool with_h, Fetch fetch) {
  for (int64_t u = unit; u < unit + units; u += kKeptTogether)
    for (int k = 0; k < Cell::kSaved; ++k)
      fetch(saved + kept_at<Cell>(layer, k, u), minimum(kKeptTogether, unit + units - u));
  if (with_h) fetch(saved + entering_h<Cell>(layer) + unit, units);
  if (Cell::kStates > 1) fetch(saved + entering_c<Cell>(layer) + unit, units);
}

}  // namespace
}  // namespace fused_rnn::cpu
