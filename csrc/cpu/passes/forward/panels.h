// How the rows of W_ih and W_hh, [G*H, depth], are grouped into panels: all gates of the same units side by side.
//
//   panel j, the units [j*U, (j+1)*U):   k = 0:   gate 0 | gate 1 | ... | gate G-1      U units each
//                                        k = 1:   gate 0 | gate 1 | ...
//
// So a register tile, a few batch rows times one panel, has all gates of these units and the cell can be its epilogue.
#pragma once
#include <type_traits>

#include "cpu/gemm/panels.h"
#include "cpu/passes/run.h"
#include "cpu/passes/shape.h"

namespace fused_rnn::cpu {
namespace {

template <class Shape, class T>
struct GatePanels {
  static constexpr int kLanes = Vec<T>::kLanes;
  // Vectors of units in a panel, but for the last one.
  static constexpr int kUnits = Shape::kGates < kMostVectors ? kMostVectors / Shape::kGates : 1;
  static constexpr int kWidth = Shape::kGates * kUnits * kLanes;

  int64_t hidden;

  int64_t unit_vectors() const { return (hidden + kLanes - 1) / kLanes; }
  int64_t padded_units() const { return unit_vectors() * kLanes; }
  int64_t count() const { return (unit_vectors() + kUnits - 1) / kUnits; }
  int64_t first_unit(int64_t panel) const { return panel * kUnits * kLanes; }
  // Of one panel: vectors of units, vectors, numbers per line.
  int units(int64_t panel) const { return int(minimum(kUnits, unit_vectors() - panel * kUnits)); }
  int vectors(int64_t panel) const { return Shape::kGates * units(panel); }
  int64_t width(int64_t panel) const { return vectors(panel) * kLanes; }

  // Vector u of the panel's units.
  Units vector_of_units(int64_t panel, int64_t u) const {
    const int64_t first = first_unit(panel) + u * kLanes;
    return {first, minimum(kLanes, hidden - first)};
  }

  // f(units(panel)), as a compile-time constant.
  template <int kCount = kUnits, class F>
  void with_units(int64_t panel, F f) const {
    if constexpr (kCount > 1)
      if (units(panel) < kCount) return with_units<kCount - 1>(panel, f);
    f(std::integral_constant<int, kCount>());
  }

  // f(vector of the panel, gate, units) for every vector of the panel.
  template <class F>
  void for_vectors(int64_t panel, F f) const {
    for (int g = 0; g < Shape::kGates; ++g)
      for (int u = 0; u < units(panel); ++u) f(g * units(panel) + u, g, vector_of_units(panel, u));
  }
};

// A gate matrix as an operand (the interface of Plain in gemm/panels.h).
template <class Shape, class E>
struct GateMatrix {
  // Sums of 32-bit integers become floats.
  using T = std::conditional_t<std::is_integral_v<Arithmetic<E>>, float, Arithmetic<E>>;
  using Panels = GatePanels<Shape, T>;
  static constexpr int kVectorsTogether = Shape::kGates;
  static constexpr int kMostOfPanel = Shape::kGates * Panels::kUnits > kMostVectors ? Shape::kGates : kMostVectors;
  Panels panels;
  int64_t depth;

  int panel_vectors(int64_t panel) const { return panels.vectors(panel); }
  int64_t first_column(int64_t panel) const { return panel * Panels::kWidth; }  // with the padding of others
  int64_t offset(int64_t panel) const { return first_column(panel) * padded_depth<E>(depth); }
};

}  // namespace
}  // namespace fused_rnn::cpu
