// A float with approximate exp and tanh, for cells whose results are stored in 16 bits: a few instructions each, with
// errors below the format's rounding (tanh near 0: below 2^-23, two ulp of a half there).
#pragma once
#include <type_traits>

#include "cells/math.h"
#include "cuda/device/storage.h"

namespace fused_rnn::cuda {
namespace {

template <class Storage>
struct Quick {
  float value;

  Quick() = default;
  FUSED_RNN_DEVICE explicit Quick(int constant) : value(static_cast<float>(constant)) {}
  FUSED_RNN_DEVICE Quick(float value) : value(value) {}

  FUSED_RNN_DEVICE friend Quick operator+(Quick a, Quick b) { return a.value + b.value; }
  FUSED_RNN_DEVICE friend Quick operator-(Quick a, Quick b) { return a.value - b.value; }
  FUSED_RNN_DEVICE friend Quick operator*(Quick a, Quick b) { return a.value * b.value; }
  FUSED_RNN_DEVICE friend Quick operator/(Quick a, Quick b) { return a.value * rough_reciprocal(b.value); }
  FUSED_RNN_DEVICE friend Quick operator-(Quick a) { return -a.value; }

  FUSED_RNN_DEVICE friend Quick exp(Quick x) { return rough_exp2(x.value * 1.44269504f); }
  // bfloat16 keeps 8 bits, which leaves room for the 11 of the instruction; float16 keeps 11 itself.
  FUSED_RNN_DEVICE friend Quick tanh(Quick x) {
    if constexpr (kOneInstruction) return rough_tanh(x.value);
    return 1.f - 2.f * rough_reciprocal(1.f + rough_exp2(x.value * 2.88539008f));
  }
  FUSED_RNN_DEVICE friend Quick sigmoid(Quick x) {
    if constexpr (kOneInstruction) return 0.5f + 0.5f * rough_tanh(0.5f * x.value);
    return rough_reciprocal(1.f + exp(-x).value);
  }
  FUSED_RNN_DEVICE friend Quick relu(Quick x) { return fused_rnn::relu(x.value); }
  FUSED_RNN_DEVICE friend Quick positive(Quick x) { return fused_rnn::positive(x.value); }

 private:
  static constexpr bool kOneInstruction = std::is_same_v<Storage, BFloat16>;
};

// What a cell computes in.
template <class Storage>
using CellNumber = std::conditional_t<sizeof(Storage) == 2, Quick<Storage>, Arithmetic<Storage>>;

FUSED_RNN_DEVICE float plain(float x) { return x; }
FUSED_RNN_DEVICE double plain(double x) { return x; }
template <class Storage>
FUSED_RNN_DEVICE float plain(Quick<Storage> x) {
  return x.value;
}

}  // namespace
}  // namespace fused_rnn::cuda
