// Products of bfloat16, or of floats in three parts (split.h), on the tiles of AMX: 16 rows x 32 k of A times 32 k x 16
// columns of a panel, into 16 x 16 floats.
//
// A panel's lines are what the right operand's rows must be, so it is read in place; so are rows of A that lie evenly
// spaced in memory. The order of a sum depends neither on the height of its tile nor on the rows beside it.
#pragma once
#include "product.h"

namespace fused_rnn {
namespace {

#ifdef FUSED_RNN_AMX

constexpr int64_t kTileRows = 16, kTileDepth = 32;
constexpr int kLeft = kMostVectors, kRight = 7;  // registers: sums, up to three parts of A, one of the panel

// The registers of this thread are set up for tiles of A of this height; 0: not at all. Setting up takes 50 ns.
thread_local int64_t tile_height = 0;

inline void set_up_tiles(int64_t height) {
  if (tile_height == height) return;
  struct alignas(64) {
    uint8_t palette = 1, first_row = 0, unused[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } setup;
  for (int i = 0; i < 8; ++i) {
    setup.row_bytes[i] = kCacheLine;
    setup.rows[i] = uint8_t(i < kRight ? height : kTileRows);
  }
  asm volatile("ldtilecfg %0" ::"m"(setup));
  tile_height = height;
}

// Runs a task and gives back what it has set up: Linux saves tiles that are in use at every switch of threads.
template <auto run, class... Args>
void in_tiles(Args... args) {
  run(args...);
  if (tile_height == 0) return;
  asm volatile("tilerelease");
  tile_height = 0;
}

template <int kTile>
FUSED_RNN_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
FUSED_RNN_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
FUSED_RNN_INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kTo, int kPart>
FUSED_RNN_INLINE void add_tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kLeft + kPart), "i"(kRight));
}

// One tile of rows times one panel: parts i of A and j of the panel for all i + j < kParts.
template <class E, class Vectors>
struct TileProduct;
template <class E, int... kVector>
struct TileProduct<E, std::integer_sequence<int, kVector...>> {
  static constexpr int kVectors = sizeof...(kVector);
  static constexpr int64_t kLine = kVectors * kCacheLine, kTileBytes = kTileRows * kCacheLine;

  static void clear() { (clear_tile<kVector>(), ...); }
  static void add(int64_t depth, const E* a, int64_t stride, const E* panel) {
    const char* b = reinterpret_cast<const char*>(panel);
    for (int64_t k = 0; k < depth; k += kTileDepth, b += kVectors * kParts<E> * kTileBytes) {
      load_left(a + k, stride * int64_t(sizeof(E)), std::make_integer_sequence<int, kParts<E>>{});
      (add_vector<kVector>(b + kVector * kParts<E> * kTileBytes, std::make_integer_sequence<int, kParts<E>>{}), ...);
    }
  }
  static void store(float* out) { (store_tile<kVector>(out + kVector * Vec<float>::kLanes, kLine), ...); }

 private:
  template <int... kPart>
  FUSED_RNN_INLINE static void load_left(const E* a, int64_t bytes, std::integer_sequence<int, kPart...>) {
    (load_tile<kLeft + kPart>(reinterpret_cast<const char*>(a) + kPart * kCacheLine, bytes), ...);
  }
  template <int kTo, int... kPart>
  FUSED_RNN_INLINE static void add_vector(const char* b, std::integer_sequence<int, kPart...>) {
    (add_part<kTo>(b + kPart * kTileBytes, std::make_integer_sequence<int, kParts<E> - kPart>{}), ...);
  }
  template <int kTo, int... kPart>
  FUSED_RNN_INLINE static void add_part(const char* b, std::integer_sequence<int, kPart...>) {
    load_tile<kRight>(b, kCacheLine);
    (add_tile_product<kTo, kPart>(), ...);
  }
};

// `multiply` of product.h, on tiles.
template <int kVectors, class E, class Row, class Fetch, class Use>
void multiply_tiles(int64_t count, int64_t depth, Row row, const E* panel, Fetch fetch, Use use, float* results) {
  using Product = TileProduct<E, std::make_integer_sequence<int, kVectors>>;
  constexpr int64_t kWidth = kVectors * Vec<float>::kLanes, kGathered = 512 / kParts<E> / kTileDepth * kTileDepth;
  float sums[kTileRows * kWidth] __attribute__((aligned(64)));
  E gathered[kTileRows * kGathered] __attribute__((aligned(64)));
  // Tiles of one height: the last one may begin in the one before, and compute some rows again.
  const int64_t tiles = (count + kTileRows - 1) / kTileRows, height = tiles ? (count + tiles - 1) / tiles : 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t known = tile * height, i0 = known + height <= count ? known : count - height;
    const E* a[kTileRows];
    for (int64_t i = 0; i < height; ++i) a[i] = row(i0 + i);
    const int64_t stride = height > 1 ? a[1] - a[0] : 0;
    bool even = true;
    for (int64_t i = 2; i < height; ++i) even = even && a[i] - a[i - 1] == stride;
    for (int64_t i = known; i < i0 + height; ++i) fetch(i);
    set_up_tiles(height);
    Product::clear();
    if (even) Product::add(padded_depth<E>(depth), a[0], stride, panel);
    for (int64_t k = 0; !even && k < depth; k += kGathered) {
      const int64_t left = padded_depth<E>(depth - k), deep = left < kGathered ? left : kGathered;
      for (int64_t i = 0; i < height; ++i) memcpy(gathered + i * deep, a[i] + k, sizeof(E) * deep);
      Product::add(deep, gathered, deep, panel + k * kWidth);
    }
    float* out = results ? results + i0 * kWidth : sums;
    Product::store(out);
    for (int64_t i = known; i < i0 + height; ++i) use(i, out + (i - i0) * kWidth);
  }
}

template <class E, class Row, class Fetch, class Use>
void multiply(int64_t count, int64_t depth, Row row, int64_t, const E* panel, int vectors, bool, Fetch fetch,
              Use use, float* results = nullptr) {
  if (vectors == 1) return multiply_tiles<1>(count, depth, row, panel, fetch, use, results);
  if (vectors == 2) return multiply_tiles<2>(count, depth, row, panel, fetch, use, results);
  if (vectors == 3) return multiply_tiles<3>(count, depth, row, panel, fetch, use, results);
  return multiply_tiles<4>(count, depth, row, panel, fetch, use, results);
}

#else

template <auto run, class... Args>
void in_tiles(Args... args) {
  run(args...);
}

#endif

}  // namespace
}  // namespace fused_rnn
