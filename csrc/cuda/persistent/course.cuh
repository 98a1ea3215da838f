// The way of the persistent kernel through time: which steps, where their rows lie, who takes part.
#pragma once
#include "cuda/device/each_unit.cuh"

namespace fused_rnn::cuda {
namespace {

// A run of steps of one problem.
struct Course {
  const Layer& layer;
  int64_t problem, m, d;
  bool onward, packed, resets;
  int steps, number, end;  // of the layer; the step of the walk, and where the run ends

  FUSED_RNN_DEVICE Course(const Layer& layer, int64_t problem, bool back, int first, int end)
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

// The steps of the run that a row takes part in.
struct Part {
  unsigned age, count;  // the step of the walk, counted from the row's first: before that it is very large

  FUSED_RNN_DEVICE void set(const Course& course, int64_t b) {
    const Layer& layer = course.layer;
    const int length =
        layer.lengths ? static_cast<int>(layer.lengths[course.m * layer.lengths_member_stride + b]) : course.steps;
    const int first = course.onward ? 0 : course.steps - length;
    const int end = first + length < course.end ? first + length : course.end;
    age = course.number - first;
    count = end > first ? end - first : 0;
  }
  FUSED_RNN_DEVICE bool has_now() const { return age < count; }
  FUSED_RNN_DEVICE void move() { ++age; }
};

template <class T>
FUSED_RNN_DEVICE void move_by(T*& pointer, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const unsigned char, unsigned char>;
  pointer = reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

}  // namespace
}  // namespace fused_rnn::cuda
