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
// So much of a panel stays in the second-level cache for so many tiles, whose sums are kept from block to block. A matrix
// of more bytes is fetched ahead of time.
constexpr int64_t kDepthAtOnce = 512, kTilesAtOnce = 8, kFetchFrom = 2 << 20;
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

// One tile of rows times one panel: parts i of A and j of the panel for all i + j < kParts. between() is called after
// every 32 k: tiles are multiplied beside everything else that the processor does.
template <class E, class Vectors>
struct TileProduct;
template <class E, int... kVector>
struct TileProduct<E, std::integer_sequence<int, kVector...>> {
  static constexpr int kVectors = sizeof...(kVector);
  static constexpr int64_t kLine = kVectors * kCacheLine, kTileBytes = kTileRows * kCacheLine;

  template <class Between>
  FUSED_RNN_INLINE static void add(int64_t depth, const E* a, int64_t stride, const E* panel, Between between) {
    const char* b = reinterpret_cast<const char*>(panel);
    for (int64_t k = 0; k < depth; k += kTileDepth, b += kVectors * kParts<E> * kTileBytes) {
      load_left(a + k, stride * int64_t(sizeof(E)), std::make_integer_sequence<int, kParts<E>>{});
      ((add_vector<kVector>(b + kVector * kParts<E> * kTileBytes, std::make_integer_sequence<int, kParts<E>>{}),
        between()),
       ...);
    }
  }

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

// Rows of A for one tile, evenly spaced or else to be gathered.
template <class E>
struct TileOfRows {
  const E* rows[kTileRows];
  int64_t height, stride = 0;
  bool even = true;

  template <class Row>
  TileOfRows(Row row, int64_t first, int64_t height) : height(height) {
    for (int64_t i = 0; i < height; ++i) rows[i] = row(first + i);
    if (height > 1) stride = rows[1] - rows[0];
    for (int64_t i = 2; i < height; ++i) even = even && rows[i] - rows[i - 1] == stride;
  }
};

// out = (or +=) rows times some depth of a panel.
template <int kVectors, class E, class Between>
void multiply_tile(const TileOfRows<E>& a, int64_t k0, int64_t depth, const E* panel, float* out, bool add_to_out,
                   Between between) {
  using Product = TileProduct<E, std::make_integer_sequence<int, kVectors>>;
  constexpr int64_t kWidth = kVectors * Vec<float>::kLanes;
  [&]<int... kVector>(std::integer_sequence<int, kVector...>) {
    constexpr int64_t kLine = kWidth * int64_t(sizeof(float));
    if (add_to_out)
      (load_tile<kVector>(out + kVector * Vec<float>::kLanes, kLine), ...);
    else
      (clear_tile<kVector>(), ...);
    if (a.even) {
      Product::add(depth, a.rows[0] + k0, a.stride, panel, between);
    } else {
      E gathered[kTileRows * kDepthAtOnce] __attribute__((aligned(64)));
      for (int64_t i = 0; i < a.height; ++i) memcpy(gathered + i * depth, a.rows[i] + k0, sizeof(E) * depth);
      Product::add(depth, gathered, depth, panel, between);
    }
    (store_tile<kVector>(out + kVector * Vec<float>::kLanes, kLine), ...);
  }(std::make_integer_sequence<int, kVectors>{});
}

// `multiply` of product.h, on tiles. The rows of a tile are used while the next one is multiplied, some after each of
// its vectors.
template <class Matrix, class E, class Row, class Fetch, class Use, class Results = KeepNothing>
void multiply(const Matrix& matrix, const E* packed, int64_t first, int64_t last, const LeftRows<Row>& left,
              Fetch fetch, Use use, Results results = {}) {
  constexpr int64_t kTileFloats = kTileRows * kMostVectors * Vec<float>::kLanes;
  const int64_t depth = padded_depth<E>(matrix.depth), blocks = depth > kDepthAtOnce ? (depth + kDepthAtOnce - 1) / kDepthAtOnce : 1;
  const int64_t bytes = (matrix.offset(last - 1) - matrix.offset(first)) * int64_t(sizeof(E));
  // A ring: the tile that is in use when a panel begins keeps its place.
  float sums[kTilesAtOnce + 1][kTileFloats] __attribute__((aligned(64)));
  int64_t place = 0;
  struct {
    int64_t panel, next, end, at_once, width;
    const float* sums;  // of row `next`
  } before = {};
  const int64_t groups = (left.count + kTilesAtOnce * kTileRows - 1) / (kTilesAtOnce * kTileRows);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t row0 = left.count * group / groups, count = left.count * (group + 1) / groups - row0;
    // Tiles of one height: the last one may begin in the one before, and compute some rows again.
    const int64_t tiles = (count + kTileRows - 1) / kTileRows, height = (count + tiles - 1) / tiles;
    set_up_tiles(height);
    const int64_t fetches = bytes > kFetchFrom ? (kParts<E> * kTileRows + tiles - 1) / tiles : 0;
    for (int64_t panel = first; panel < last; ++panel, place += tiles) {
      const int vectors = matrix.panel_vectors(panel);
      const int64_t width = vectors * Vec<float>::kLanes;
      float* const kept = results(panel);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t k0 = depth * block / blocks / kTileDepth * kTileDepth;
        const int64_t deep = depth * (block + 1) / blocks / kTileDepth * kTileDepth - k0;
        const int64_t pauses = deep / kTileDepth * vectors;
        const E* const b = packed + matrix.offset(panel) + k0 * width;
        const char* coming = reinterpret_cast<const char*>(b + deep * width);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t known = row0 + tile * height, i0 = known + height <= row0 + count ? known : row0 + count - height;
          float* const out = kept ? kept + i0 * width : sums[(place + tile) % (kTilesAtOnce + 1)];
          if (block == 0)
            for (int64_t i = known; i < i0 + height; ++i) fetch(panel, i);
          before.at_once = pauses > 0 ? (before.end - before.next + pauses - 1) / pauses : 0;
          const auto between = [&] {
            for (int64_t i = 0; i < fetches; ++i, coming += kCacheLine) __builtin_prefetch(coming, 0, 2);
            for (int64_t i = 0; i < before.at_once && before.next < before.end; ++i, before.sums += before.width)
              use(before.panel, before.next++, before.sums);
          };
          const TileOfRows<E> a(left.row, i0, height);
          if (vectors == 1)
            multiply_tile<1>(a, k0, deep, b, out, block > 0, between);
          else if (vectors == 2)
            multiply_tile<2>(a, k0, deep, b, out, block > 0, between);
          else if (vectors == 3)
            multiply_tile<3>(a, k0, deep, b, out, block > 0, between);
          else
            multiply_tile<4>(a, k0, deep, b, out, block > 0, between);
          if (block + 1 < blocks) continue;
          for (; before.next < before.end; before.sums += before.width)
            use(before.panel, before.next++, before.sums);
          before = {panel, known, i0 + height, 0, width, out + (known - i0) * width};
        }
      }
    }
  }
  for (; before.next < before.end; before.sums += before.width) use(before.panel, before.next++, before.sums);
}

#else

template <auto run, class... Args>
void in_tiles(Args... args) {
  run(args...);
}

#endif

}  // namespace
}  // namespace fused_rnn
