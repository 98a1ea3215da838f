// A loop whose counter is a compile-time constant.
#pragma once
#include <utility>

#include "cells/function.h"
#include "cuda/device/device.h"

namespace fused_rnn::cuda {
namespace {

// std::integral_constant's conversion is host code.
template <int value>
struct Constant {
  FUSED_RNN_FN constexpr operator int() const { return value; }
};

template <class F, int... i>
FUSED_RNN_DEVICE void call_each(F f, std::integer_sequence<int, i...>) {
  (f(Constant<i>{}), ...);
}
template <int kCount, class F>
FUSED_RNN_DEVICE void unrolled(F f) {
  call_each(f, std::make_integer_sequence<int, kCount>{});
}

}  // namespace
}  // namespace fused_rnn::cuda
