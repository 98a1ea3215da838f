// Addresses of memory instructions, checked.
#pragma once
#include "grid.h"

namespace ptx {

struct SharedPlace {
  Block* block;
  uint32_t byte;
};

// Of the first (which = 0) or second address of an instruction, whose register is source `operand`.
uint64_t address_of(const Warp& w, const Instruction& i, int lane, int which, int operand);
void check_alignment(const Warp& w, const Instruction& i, uint64_t address, uint32_t bytes);
// Of the block's own or, by an address of the cluster's window, another one's shared memory.
SharedPlace shared_place(const Warp& w, const Instruction& i, uint64_t address, uint32_t bytes);

}  // namespace ptx
