// How many passes accesses take, counted where options.traffic asks for it.
#pragma once
#include "grid.h"

namespace ptx {

// `bytes`: of each lane.
void note_traffic(Warp& w, const Instruction& i, uint32_t mask, bool shared, uint32_t bytes);

}  // namespace ptx
