// Opcodes that round in another direction than to nearest.
#pragma once
#include <cfenv>

#include "elementwise.h"

namespace ptx {

// kMode: FE_DOWNWARD, FE_UPWARD or FE_TOWARDZERO. Operands come from memory and results go there, so no arithmetic can
// move past the calls that change the mode.
template <int kMode, Execute kRun>
void run_rounding(Warp& w, const Instruction& i, uint32_t mask) {
  const int before = std::fegetround();
  std::fesetround(kMode);
  kRun(w, i, mask);
  std::fesetround(before);
}

// NAME.rn.TYPE and the same in each direction, of a function as AddElementwise takes it.
template <class F>
void add_roundings(Opcodes& all, const std::string& name, const std::string& type, F) {
  using E = Elementwise<F>;
  E::add_to(all, name + ".rn." + type);
  E::add_to(all, name + ".rz." + type, run_rounding<FE_TOWARDZERO, E::run>);
  E::add_to(all, name + ".rm." + type, run_rounding<FE_DOWNWARD, E::run>);
  E::add_to(all, name + ".rp." + type, run_rounding<FE_UPWARD, E::run>);
}

}  // namespace ptx
