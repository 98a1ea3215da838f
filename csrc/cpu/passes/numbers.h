// What of a cell the phases read that only move and multiply: they are compiled once for all cells.
#pragma once
#include "core/dispatch.h"

namespace fused_rnn::cpu {
namespace {

struct CellNumbers {
  int64_t gates, shared_gates, states, saved, params;
  bool recurrent, reads_h, one_gate_gradient;
};

inline CellNumbers numbers_of(const Layer& layer) {
  return dispatch_cell(layer.cell, [](auto type) {
    using Cell = typename decltype(type)::type;
    return CellNumbers{Cell::kGates,  Cell::kSharedGates, Cell::kStates, Cell::kSaved,
                       Cell::kParams, Cell::kRecurrent,   Cell::kReadsH, kOneGateGradient<Cell>};
  });
}

}  // namespace
}  // namespace fused_rnn::cpu
