// In place of csrc/cpu/schedule/tile_support.cpp: the tiles are software.
#include "cpu/schedule/tile_support.h"

namespace fused_rnn::cpu {

TileSupport tile_support() { return {true, true}; }

}  // namespace fused_rnn::cpu
