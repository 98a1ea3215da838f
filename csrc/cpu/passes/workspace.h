// Workspace: divides one buffer among a pass's arrays; strides and padding of rows.
#pragma once
#include "core/problem.h"
#include "cpu/gemm/element.h"
#include "cpu/schedule/plan.h"

namespace fused_rnn::cpu {
namespace {

// A bump allocator with aligned pieces. With a null buffer it only computes the size.
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

// A part of a workspace is a struct whose constructor (args, plan, carver) allocates its arrays.
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

// A typed pointer into an array of the layer; null stays null.
template <class S>
const S* at(const void* array, int64_t offset) {
  return array ? static_cast<const S*>(array) + offset : nullptr;
}
template <class S>
S* at(void* array, int64_t offset) {
  return array ? static_cast<S*>(array) + offset : nullptr;
}

// Leading dimension of a matrix: whole vectors, and never a multiple of 4 KiB, or all rows would compete for the same
// few sets of L1.
template <class T>
int64_t row_stride(int64_t columns) {
  const int64_t lanes = maximum(kParts<T> > 1 ? kDepthStep<T> : 1, kVectorBytes / int64_t(sizeof(T)));
  const int64_t padded = (columns + lanes - 1) / lanes * lanes;
  return padded * int64_t(sizeof(T)) % 4096 == 0 ? padded + lanes : padded;
}

// Zeros a row of `used` numbers from there to its padded depth.
template <class E>
void clear_padding(E* row, int64_t used) {
  if (kDepthStep<E> > 1) zero_row_at(row, used, padded_depth<E>(used) - used);
}

}  // namespace
}  // namespace fused_rnn::cpu
