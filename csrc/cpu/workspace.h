// Small tools both passes share: scratch memory, typed pointers, the walk over rows.
#pragma once
#include <math.h>

#include "../problem.h"
#include "plan.h"
#include "storage.h"

namespace fused_rnn {
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
inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t problems(const Layer& layer) { return layer.members * layer.directions; }

// What one walk through time covers: batch rows [first, last) of one problem.
struct Run {
  int64_t problem, member, direction, first, last;
};
inline int64_t count_runs(const Layer& layer, const Plan& plan) { return problems(layer) * plan.row_chunks; }
inline Run run_of(const Layer& layer, const Plan& plan, int64_t task) {
  const int64_t problem = task / plan.row_chunks, chunk = task % plan.row_chunks;
  return {problem, problem / layer.directions, problem % layer.directions, cut(layer.batch, plan.row_chunks, chunk),
          cut(layer.batch, plan.row_chunks, chunk + 1)};
}

// One row of `saved`: [kSaved, H] what the cell keeps, then the states that entered the step: h [P], c [H].
template <class Cell>
int64_t entering_h(const Layer& layer) {
  return Cell::kSaved * layer.hidden;
}
template <class Cell>
int64_t entering_c(const Layer& layer) {
  return entering_h<Cell>(layer) + layer.output_size;
}

}  // namespace
}  // namespace fused_rnn
