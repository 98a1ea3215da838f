// What layer norm computes of a row, for the forward and the backward pass.
#pragma once
#include <math.h>

#include "cpu/passes/run.h"
#include "cpu/passes/workspace.h"

namespace fused_rnn::cpu {
namespace {

inline float square_root(float x) { return ::sqrtf(x); }
inline double square_root(double x) { return ::sqrt(x); }

// x with zeros after the first numbers.
template <class T>
FUSED_RNN_INLINE Vec<T> first_of(Vec<T> x, int64_t count) {
  if (count >= Vec<T>::kLanes) return x;
  T some[Vec<T>::kLanes];
  store_vector(some, x);
  return load_vector(some, count);
}

// f(k, first, count) for vectors of some numbers, k in 0..3: to add up four sums side by side.
template <int64_t kLanes, class F>
FUSED_RNN_INLINE void by_fours(int64_t numbers, F f) {
  int64_t first = 0;
  for (; first + 4 * kLanes <= numbers; first += 4 * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) f(k, first + k * kLanes, kLanes);
  }
  for (; first < numbers; first += kLanes) f(0, first, minimum(kLanes, numbers - first));
}
template <class T>
struct FourSums {
  Vec<T> sums[4] = {Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0))};
  T total() const { return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])); }
};

template <class T>
struct Moments {
  T mean, scale;  // 1 / the deviation
};
template <class T>
T scale_of(T variance) {
  return T(1) / square_root(variance + T(kNormEpsilon));
}
// Of a row of numbers.
template <class T>
Moments<T> moments_of(const T* row, int64_t count) {
  using V = Vec<T>;
  FourSums<T> sum, squares;
  by_fours<V::kLanes>(count, [&](int k, int64_t j, int64_t n) { sum.sums[k] = sum.sums[k] + load_vector(row + j, n); });
  const T mean = sum.total() / T(count);
  by_fours<V::kLanes>(count, [&](int k, int64_t j, int64_t n) {
    const V from_mean = first_of(load_vector(row + j, n) - V(mean), n);
    squares.sums[k] = squares.sums[k] + from_mean * from_mean;
  });
  return {mean, scale_of(squares.total() / T(count))};
}

// The gradient of what was normalised, from that of the result: scale * (d - mean(d) - y * mean(d * y)).
template <class T>
struct NormGradient {
  T scale;
  FourSums<T> sum, products;  // of d, and of d * y
  T mean, mean_of_products;

  FUSED_RNN_INLINE void add(int k, Vec<T> d, Vec<T> y) {
    sum.sums[k] = sum.sums[k] + d;
    products.sums[k] = products.sums[k] + d * y;
  }
  void end(int64_t count) {
    mean = sum.total() / T(count);
    mean_of_products = products.total() / T(count);
  }
  FUSED_RNN_INLINE Vec<T> operator()(Vec<T> d, Vec<T> y) const {
    using V = Vec<T>;
    return V(scale) * (d - V(mean) - y * V(mean_of_products));
  }
};

// gain_c * normalised(c) + bias_c of these units. `first`: of the member's, among the weights.
template <class S, class V>
FUSED_RNN_INLINE V normed_c(const Weights& w, int64_t first, Units units, V normalised) {
  const V y = normalised * load_vector(at<S>(w.gain_c, first + units.first), units.count);
  return w.bias_c ? y + load_vector(at<S>(w.bias_c, first + units.first), units.count) : y;
}

}  // namespace
}  // namespace fused_rnn::cpu
