// The 16-bit storage formats, and the type that each format is computed in: float for 16-bit, otherwise itself.
#pragma once
#include <stdint.h>

namespace fused_rnn {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class S>
struct ArithmeticOf {
  using type = S;
};
template <>
struct ArithmeticOf<BFloat16> {
  using type = float;
};
template <>
struct ArithmeticOf<Half> {
  using type = float;
};
template <class S>
using Arithmetic = typename ArithmeticOf<S>::type;

}  // namespace
}  // namespace fused_rnn
