// The one place where run-time values select compile-time types.
#pragma once
#include "cells/cells.h"
#include "core/cell_traits.h"
#include "core/problem.h"

namespace fused_rnn {

// Throws; defined in ops.cpp, so that kernels need no exception machinery.
[[noreturn]] void unknown_value(const char* what, int64_t value);

namespace {

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<Cell>{}).
template <class F>
auto dispatch_cell(int64_t cell, F f) {
  switch (cell) {
#define FUSED_RNN_CASE(id, Cell) \
  case id:                       \
    return f(Type<Cell>{});
    FUSED_RNN_CELLS(FUSED_RNN_CASE)
#undef FUSED_RNN_CASE
  }
  unknown_value("cell", cell);
}

template <class Cell>
constexpr CellTraits kTraits = {
    Cell::kGates,     Cell::kStates, Cell::kSaved,       Cell::kParams,          Cell::kSharedGates,
    Cell::kRecurrent, Cell::kReadsH, Cell::kProjectable, kOneGateGradient<Cell>, requires { Cell::kOutputGate; }};

inline CellTraits traits_of(int64_t cell) {
  return dispatch_cell(cell, [](auto c) { return kTraits<typename decltype(c)::type>; });
}

// Calls f(Type<Storage>{}). Each engine brings its own storage types for the 16-bit formats.
template <class BFloat16, class Half, class F>
auto dispatch_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f(Type<float>{});
    case Dtype::kDouble:
      return f(Type<double>{});
    case Dtype::kBFloat16:
      return f(Type<BFloat16>{});
    case Dtype::kHalf:
      return f(Type<Half>{});
  }
  unknown_value("dtype", static_cast<int64_t>(dtype));
}

}  // namespace
}  // namespace fused_rnn
