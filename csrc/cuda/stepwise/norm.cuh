// Layer norm in a step: one block for each row, which adds up in a fixed order.
#pragma once
#include "cuda/stepwise/backward.cuh"
#include "cuda/stepwise/forward.cuh"
#include "cuda/stepwise/kernels.h"

namespace fused_rnn::cuda {
namespace {

constexpr unsigned kNormedThreads = 128;

// The sum of the threads' values, by a tree; in all threads.
template <class T>
FUSED_RNN_DEVICE T sum_of_block(T value) {
  T* const sums = reinterpret_cast<T*>(shared_memory());
  __syncthreads();  // the last call's readers
  sums[threadIdx.x] = value;
  for (unsigned others = kNormedThreads / 2; others > 0; others /= 2) {
    __syncthreads();
    if (threadIdx.x < others) sums[threadIdx.x] += sums[threadIdx.x + others];
  }
  __syncthreads();
  return sums[0];
}

template <class T>
struct RowMoments {
  T mean, scale;  // 1 / the deviation
};
template <class T>
FUSED_RNN_DEVICE RowMoments<T> moments_of(const T* row, int64_t count) {
  T sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < count; i += kNormedThreads) sum += row[i];
  const T mean = sum_of_block(sum) / T(count);
  for (int64_t i = threadIdx.x; i < count; i += kNormedThreads) squares += (row[i] - mean) * (row[i] - mean);
  return {mean, T(1) / square_root(sum_of_block(squares) / T(count) + T(kNormEpsilon))};
}

// Where a row's W_ih x (0) or W_hh h (1) is: the sums, and in the saved row; its gain.
template <class S>
struct NormedSums {
  Arithmetic<S>* sums;
  int64_t normalised;
  const S* gain;

  FUSED_RNN_DEVICE NormedSums(const Forward& f, const Place& p, const ForwardArrays& a, const CellTraits& cell,
                              int64_t problem, unsigned which) {
    using T = Arithmetic<S>;
    const int64_t GH = cell.gates * f.hidden, x_row = problem * a.x_rows + p.row - pick(a.x_first_row, p.d);
    sums = which == 0 ? at<T>(const_cast<void*>(a.x), x_row * GH) : at<T>(const_cast<void*>(a.r), p.state * GH);
    normalised = which == 0 ? normalised_x(f, cell) : normalised_r(f, cell);
    const Weights w = pick(f.weights, p.d);
    gain = at<S>(which == 0 ? w.gain_ih : w.gain_hh, p.m * GH);
  }
};

// Before the cell: W_ih x and W_hh h of the step, in place, by blocks of both. `starts_at_zero`: a row whose state is
// reset has no W_hh h.
template <class S>
__global__ void normalise(const Forward f, const Step step, const ForwardArrays a, const CellTraits cell,
                          bool starts_at_zero) {
  using T = Arithmetic<S>;
  const int64_t b = blockIdx.x, GH = cell.gates * f.hidden;
  for (int64_t problem = blockIdx.y; problem < problems(f); problem += gridDim.y) {
    const Place p(f, step, problem, b);
    if (!p.active) continue;
    const NormedSums<S> of(f, p, a, cell, problem, blockIdx.z);
    const bool none = blockIdx.z == 1 && starts_at_zero && p.is_cut(f, step, b);
    for (int64_t i = threadIdx.x; none && i < GH; i += kNormedThreads) of.sums[i] = 0;
    __syncthreads();
    const RowMoments<T> moments = moments_of(of.sums, GH);
    S* const saved = at<S>(f.saved, p.by_direction(f) * f.saved_width);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < GH; i += kNormedThreads) {
      const T value = (of.sums[i] - moments.mean) * moments.scale;
      if (saved) store(saved[of.normalised + i], value);
      of.sums[i] = value * load(of.gain[i]);
    }
    if (saved && threadIdx.x == 0) store(saved[norm_scales(f, cell) + blockIdx.z], moments.scale);
  }
}

// gain_c * normalised(c) + bias_c of a unit.
template <class S>
FUSED_RNN_DEVICE Arithmetic<S> normed_c(const Layer& layer, const Place& p, int64_t unit, Arithmetic<S> normalised) {
  const Weights w = pick(layer.weights, p.d);
  const int64_t i = p.m * layer.hidden + unit;
  const Arithmetic<S> y = normalised * load(*at<S>(w.gain_c, i));
  return w.bias_c ? y + load(*at<S>(w.bias_c, i)) : y;
}

// After the cell, if c is normalised: h.
template <class S>
__global__ void normed_h(const Forward f, const Step step, const ForwardArrays a, const CellTraits cell) {
  using T = Arithmetic<S>;
  const int64_t b = blockIdx.x, H = f.hidden;
  for (int64_t problem = blockIdx.y; problem < problems(f); problem += gridDim.y) {
    const Place p(f, step, problem, b);
    if (!p.active) continue;
    const T* const c = at<T>(a.new_c, p.state * H);
    const RowMoments<T> moments = moments_of(c, H);
    const bool cut = p.is_cut(f, step, b);
    S* const saved = at<S>(f.saved, p.by_direction(f) * f.saved_width);
    for (int64_t unit = threadIdx.x; unit < H; unit += kNormedThreads) {
      const T value = (c[unit] - moments.mean) * moments.scale;
      if (saved) store(saved[normalised_c(f, cell) + unit], value);
      T h = *at<T>(a.gate, p.state * H + unit) * tanh(normed_c<S>(f, p, unit, value));
      if (f.zones_out) {
        const T share = kept_share<T>(f, p, cell.states, 0, unit);
        const T former = cut ? T(0) : load(*at<S>(a.h, p.state * H + unit));
        h = !f.zoneout_mask ? h + share * (former - h) : share > 0 ? former : h;
      }
      store_h<S>(f, p, a, cell.saved, unit, cut, h);
    }
    if (saved && threadIdx.x == 0) store(saved[norm_scales(f, cell) + 2], moments.scale);
  }
}

// The gradient of what was normalised, from that of the result: scale * (d - mean(d) - y * mean(d * y)).
template <class T>
struct RowGradient {
  T scale, mean, mean_of_products;

  FUSED_RNN_DEVICE RowGradient(T scale, T sum, T products, int64_t count)
      : scale(scale), mean(sum_of_block(sum) / T(count)), mean_of_products(sum_of_block(products) / T(count)) {}
  FUSED_RNN_DEVICE T operator()(T d, T y) const { return scale * (d - mean - y * mean_of_products); }
};

// Before the cell's backward_step, if c is normalised: the whole gradient of h, what c gets from it, and tanh of the
// normalised c. `gate`: the number of the output gate among the cell's saved values.
template <class S>
__global__ void to_normed_c(const Backward g, const Step step, const BackwardArrays a, const CellTraits cell,
                            int gate) {
  using T = Arithmetic<S>;
  const int64_t b = blockIdx.x, H = g.hidden;
  for (int64_t problem = blockIdx.y; problem < problems(g); problem += gridDim.y) {
    const Place p(g, step, problem, b);
    const NormSums places = norm_sums(g, cell);
    const S* const saved = p.active ? at<S>(g.saved, p.by_direction(g) * g.saved_width) : nullptr;
    const S* const gain = at<S>(pick(g.weights, p.d).gain_c, p.m * H);
    T* const sums = at<T>(a.norms, p.state * places.count * H);
    T sum = 0, products = 0;
    for (int64_t unit = threadIdx.x; unit < H; unit += kNormedThreads) {
      const T dh = whole_dh<S>(g, p, step, a, b, unit);
      *at<T>(a.normed_h, p.state * H + unit) = dh;
      if (!p.active) continue;
      const T y = load(saved[normalised_c(g, cell) + unit]), tanh_c = tanh(normed_c<S>(g, p, unit, y));
      const T share = g.zones_out ? kept_share<T>(g, p, cell.states, 0, unit) : T(0);
      const T dy = (dh - dh * share) * load(saved[kept_at(g, gate, unit)]) * dtanh(tanh_c);
      *at<T>(a.to_c, p.state * H + unit) = dy;
      *at<T>(a.tanh_c, p.state * H + unit) = tanh_c;
      sums[places.gain_c * H + unit] += dy * y;
      sums[places.bias_c * H + unit] += dy;
      const T d = dy * load(gain[unit]);
      sum += d;
      products += d * y;
    }
    if (!p.active) continue;
    const RowGradient<T> through_norm(load(saved[norm_scales(g, cell) + 2]), sum, products, H);
    for (int64_t unit = threadIdx.x; unit < H; unit += kNormedThreads) {
      T* const to_c = at<T>(a.to_c, p.state * H + unit);
      *to_c = through_norm(*to_c * load(gain[unit]), load(saved[normalised_c(g, cell) + unit]));
    }
  }
}

// After the cell: gradients of W_ih x and W_hh h from those of x and r, by blocks of both.
template <class S>
__global__ void through_norm(const Backward g, const Step step, const BackwardArrays a, const CellTraits cell) {
  using T = Arithmetic<S>;
  const int64_t b = blockIdx.x, GH = cell.gates * g.hidden;
  const bool of_r = blockIdx.z == 1;
  for (int64_t problem = blockIdx.y; problem < problems(g); problem += gridDim.y) {
    const Place p(g, step, problem, b);
    if (!p.active) continue;
    const NormSums places = norm_sums(g, cell);
    const Weights w = pick(g.weights, p.d);
    const S* const saved = at<S>(g.saved, p.by_direction(g) * g.saved_width);
    const S* const normalised = saved + (of_r ? normalised_r(g, cell) : normalised_x(g, cell));
    const S* const gain = at<S>(of_r ? w.gain_hh : w.gain_ih, p.m * GH);
    const T* const from = at<T>(of_r ? a.normed_r : a.normed_x, p.state * GH);
    T* const sums = at<T>(a.norms, p.state * places.count * g.hidden);
    T sum = 0, products = 0;
    for (int64_t i = threadIdx.x; i < GH; i += kNormedThreads) {
      const T y = load(normalised[i]), d = from[i] * load(gain[i]);
      sums[(of_r ? places.gain_r : places.gain_x) * g.hidden + i] += from[i] * y;
      if (!of_r || !cell.one_gate_gradient) sums[(of_r ? places.bias_r : places.bias_x) * g.hidden + i] += from[i];
      sum += d;
      products += d * y;
    }
    const RowGradient<T> gradient(load(saved[norm_scales(g, cell) + blockIdx.z]), sum, products, GH);
    const bool cut = p.is_cut(g, step, b);
    for (int64_t i = threadIdx.x; i < GH; i += kNormedThreads) {
      const T d = gradient(from[i] * load(gain[i]), load(normalised[i]));
      store(*at<S>(of_r ? a.gates_r : a.gates_x, p.by_row(g) * GH + i), d);
      if (of_r) store(*at<S>(a.step_gates, p.state * GH + i), cut ? T(0) : d);
    }
  }
}

}  // namespace
}  // namespace fused_rnn::cuda
