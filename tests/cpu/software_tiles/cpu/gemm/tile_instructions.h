// In place of csrc/cpu/gemm/tile_instructions.h: the instructions of AMX as Intel's manual of instructions defines them,
// on registers in memory. What a processor refuses ends the process with a message.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/gemm/tile_setup.h"
#include "cpu/simd/vector.h"

namespace fused_rnn::cpu {
namespace {

constexpr int kTileCount = 8, kMostTileRows = 16, kMostTileBytes = 64;  // of palette 1

struct SoftwareTile {
  alignas(64) uint8_t row[kMostTileRows][kMostTileBytes];
  int rows, row_bytes;

  int32_t* lanes(int i) { return reinterpret_cast<int32_t*>(row[i]); }
  // Past what a register is configured for there are zeros.
  void clear_rest() {
    for (int i = 0; i < kMostTileRows; ++i)
      memset(row[i] + (i < rows ? row_bytes : 0), 0, kMostTileBytes - (i < rows ? row_bytes : 0));
  }
};
struct TileRegisters {
  bool are_configured;
  SoftwareTile tiles[kTileCount];
};
thread_local TileRegisters tile_registers = {};

[[noreturn]] inline void refuse_tiles(const char* instruction, const char* reason) {
  fprintf(stderr, "%s: %s\n", instruction, reason);
  abort();
}
inline SoftwareTile& configured_tile(int tile, const char* instruction) {
  if (!tile_registers.are_configured) refuse_tiles(instruction, "#UD, tiles are not configured");
  if (tile_registers.tiles[tile].rows == 0) refuse_tiles(instruction, "#UD, the register has no rows");
  return tile_registers.tiles[tile];
}

inline void release_tiles() { memset(&tile_registers, 0, sizeof tile_registers); }

inline void configure_tiles(const TileSetup& setup) {
  const auto check = [](bool is_allowed, const char* reason) {
    if (!is_allowed) refuse_tiles("ldtilecfg", reason);
  };
  release_tiles();
  if (setup.palette == 0) return;
  check(setup.palette == 1, "#GP, there is no such palette");
  check(setup.first_row == 0, "a first row is for instructions that were interrupted");
  for (const uint8_t byte : setup.unused) check(byte == 0, "#GP, bytes 2 to 15 must be 0");
  for (int i = kTileCount; i < 16; ++i)
    check(setup.row_bytes[i] == 0 && setup.rows[i] == 0, "#GP, there are no registers from 8 on");
  for (int i = 0; i < kTileCount; ++i) {
    check(setup.rows[i] <= kMostTileRows && setup.row_bytes[i] <= kMostTileBytes,
          "#GP, a register has 16 rows of 64 bytes at most");
    check((setup.rows[i] == 0) == (setup.row_bytes[i] == 0), "#GP, rows without bytes, or bytes without rows");
    tile_registers.tiles[i].rows = setup.rows[i];
    tile_registers.tiles[i].row_bytes = setup.row_bytes[i];
  }
  tile_registers.are_configured = true;
}

template <int kTile>
void clear_tile() {
  SoftwareTile& tile = configured_tile(kTile, "tilezero");
  memset(tile.row, 0, sizeof tile.row);
}
template <int kTile>
void load_tile(const void* from, int64_t stride) {
  SoftwareTile& tile = configured_tile(kTile, "tileloadd");
  for (int i = 0; i < tile.rows; ++i)
    memcpy(tile.row[i], static_cast<const char*>(from) + i * stride, size_t(tile.row_bytes));
  tile.clear_rest();
}
template <int kTile>
void store_tile(void* to, int64_t stride) {
  SoftwareTile& tile = configured_tile(kTile, "tilestored");
  for (int i = 0; i < tile.rows; ++i) memcpy(static_cast<char*>(to) + i * stride, tile.row[i], size_t(tile.row_bytes));
}

// The operands of a product, whose shapes must agree.
struct TileOperands {
  SoftwareTile &sums, &a, &b;
  int depth, width;  // in lanes of 32 bits

  TileOperands(int to, int left, int right, const char* instruction)
      : sums(configured_tile(to, instruction)),
        a(configured_tile(left, instruction)),
        b(configured_tile(right, instruction)),
        depth(a.row_bytes / 4),
        width(sums.row_bytes / 4) {
    if (to == left || to == right || left == right) refuse_tiles(instruction, "#UD, a register is given twice");
    for (const SoftwareTile* tile : {&sums, &a, &b})
      if (tile->row_bytes % 4 != 0) refuse_tiles(instruction, "#UD, a row is not of whole lanes");
    if (sums.rows != a.rows) refuse_tiles(instruction, "#UD, the sums and A differ in rows");
    if (sums.row_bytes != b.row_bytes) refuse_tiles(instruction, "#UD, the sums and B differ in columns");
    if (b.rows != depth) refuse_tiles(instruction, "#UD, A and B differ in depth");
  }
};

// The sums of even k and those of odd k, which are added to each other and then to what was there.
__attribute__((noinline)) void add_bfloat16_rows(TileOperands& of) {
  const __m512i upper = _mm512_set1_epi32(int32_t(0xffff0000u));
  for (int m = 0; m < of.sums.rows; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int k = 0; k < of.depth; ++k) {
      const __m512i a = _mm512_set1_epi32(of.a.lanes(m)[k]), b = _mm512_load_si512(of.b.row[k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, upper)),
                            _mm512_castsi512_ps(_mm512_and_si512(b, upper)), odd);
    }
    const __m512 sums = _mm512_load_ps(of.sums.row[m]);
    _mm512_store_ps(of.sums.row[m], _mm512_add_ps(sums, _mm512_add_ps(even, odd)));
  }
}

// Rounds to nearest, takes denormals for 0 and makes 0 of them, whatever the thread does otherwise.
template <int kTo, int kA, int kB>
void add_bfloat16_products() {
  constexpr unsigned kTakesDenormalsForZero = 1u << 6, kAllMasked = 0x1f80, kMakesZeroOfDenormals = 1u << 15;
  TileOperands operands(kTo, kA, kB, "tdpbf16ps");
  const unsigned before = _mm_getcsr();
  _mm_setcsr(kAllMasked | kTakesDenormalsForZero | kMakesZeroOfDenormals);
  add_bfloat16_rows(operands);
  _mm_setcsr(before);
  operands.sums.clear_rest();
}

template <int kTo, int kA, int kB>
void add_byte_products() {
  TileOperands of(kTo, kA, kB, "tdpbusd");
  for (int m = 0; m < of.sums.rows; ++m)
    for (int k = 0; k < of.depth; ++k)
      for (int n = 0; n < of.width; ++n)
        for (int i = 0; i < 4; ++i)
          of.sums.lanes(m)[n] += int32_t(of.a.row[m][4 * k + i]) * int8_t(of.b.row[k][4 * n + i]);
  of.sums.clear_rest();
}

}  // namespace
}  // namespace fused_rnn::cpu
