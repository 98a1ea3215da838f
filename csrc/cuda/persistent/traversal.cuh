// The steps of a launch of the persistent kernel: their times, their rows' offsets, which rows are active.
#pragma once
#include "cuda/device/each_unit.cuh"

namespace fused_rnn::cuda {
namespace {

// A run of steps of one problem.
struct Traversal {
  const Layer& layer;
  int64_t problem, m, d;
  bool onward, packed, resets;
  int steps, number, end;  // of the layer; the current step, in this direction's order; where the run ends

  FUSED_RNN_DEVICE Traversal(const Layer& layer, int64_t problem, bool back, int first, int end)
      : layer(layer),
        problem(problem),
        m(problem / layer.directions),
        d(problem % layer.directions),
        onward((d == 0) != back),
        packed(layer.offsets),
        resets(layer.reset),
        steps(static_cast<int>(layer.steps)),
        number(first),
        end(end) {}

  FUSED_RNN_DEVICE int time_of(int step) const { return onward ? step : steps - 1 - step; }
  FUSED_RNN_DEVICE int64_t first_row(int step) const { return row_of(layer, time_of(step), 0); }
  // From this step to the next one of the run.
  FUSED_RNN_DEVICE int64_t rows_to_next() const {
    if (!packed) return onward ? layer.batch : -layer.batch;
    return number + 1 < end ? first_row(number + 1) - first_row(number) : 0;
  }
};

// The steps of the run in which a row is active.
struct ActiveSteps {
  unsigned age, count;  // the current step, relative to the row's first (wraps around before it)

  FUSED_RNN_DEVICE void set(const Traversal& traversal, int64_t b) {
    const Layer& layer = traversal.layer;
    const int length = layer.lengths ? static_cast<int>(layer.lengths[traversal.m * layer.lengths_member_stride + b])
                                     : traversal.steps;
    const int first = traversal.onward ? 0 : traversal.steps - length;
    const int end = first + length < traversal.end ? first + length : traversal.end;
    age = traversal.number - first;
    count = end > first ? end - first : 0;
  }
  FUSED_RNN_DEVICE bool is_active() const { return age < count; }
  FUSED_RNN_DEVICE void move() { ++age; }
};

template <class T>
FUSED_RNN_DEVICE void move_by(T*& pointer, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const unsigned char, unsigned char>;
  pointer = reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

}  // namespace
}  // namespace fused_rnn::cuda
