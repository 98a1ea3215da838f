// The shapes of AMX's tile registers.
#pragma once
#include <stdint.h>

namespace fused_rnn::cpu {
namespace {

// What ldtilecfg reads. Of registers 8 .. 15, which no processor has, everything is 0.
struct alignas(64) TileSetup {
  uint8_t palette = 1, first_row = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileSetup) == 64);

}  // namespace
}  // namespace fused_rnn::cpu
