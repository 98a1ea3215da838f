// Whether this process may use AMX.
#pragma once

namespace fused_rnn::cpu {

struct TileSupport {
  bool bfloat16, bytes;  // products of these
};

// Asks Linux for permission, which a process must have: tile state adds 8 KiB to every thread's saved registers.
TileSupport tile_support();

}  // namespace fused_rnn::cpu
