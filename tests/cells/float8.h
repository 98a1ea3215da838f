// A vector of eight floats, as an engine's vector type: in a namespace of its own, where its functions are found by
// argument-dependent lookup alone.
#pragma once
#include <math.h>

#include <algorithm>

namespace simd {

constexpr int kLanes = 8;

struct Float8 {
  float lane[kLanes];

  Float8() = default;
  explicit Float8(float x) { std::fill_n(lane, kLanes, x); }
};

template <class F>
Float8 map(Float8 a, F f) {
  for (float& x : a.lane) x = f(x);
  return a;
}
template <class F>
Float8 map(Float8 a, const Float8& b, F f) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] = f(a.lane[i], b.lane[i]);
  return a;
}

Float8 operator-(const Float8& a) {
  return map(a, [](float x) { return -x; });
}
Float8 operator+(const Float8& a, const Float8& b) {
  return map(a, b, [](float x, float y) { return x + y; });
}
Float8 operator-(const Float8& a, const Float8& b) {
  return map(a, b, [](float x, float y) { return x - y; });
}
Float8 operator*(const Float8& a, const Float8& b) {
  return map(a, b, [](float x, float y) { return x * y; });
}
Float8 operator/(const Float8& a, const Float8& b) {
  return map(a, b, [](float x, float y) { return x / y; });
}
Float8 exp(const Float8& a) {
  return map(a, [](float x) { return fused_rnn::exp(x); });
}
Float8 tanh(const Float8& a) {
  return map(a, [](float x) { return fused_rnn::tanh(x); });
}
Float8 relu(const Float8& a) {
  return map(a, [](float x) { return fused_rnn::relu(x); });
}
Float8 positive(const Float8& a) {
  return map(a, [](float x) { return fused_rnn::positive(x); });
}

}  // namespace simd
