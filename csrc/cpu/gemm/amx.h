// Products of bfloat16, or of floats split in three (split.h), on AMX tiles: 16 rows x 32 k of A times 32 k x 16
// columns of a panel, accumulated in 16 x 16 floats. Or of bytes (int8.h): 64 k, and 32-bit integers.
//
// Panels have the layout of the right operand and are read in place, as are rows of A with a constant stride. The order
// of a sum depends neither on the height of its tile nor on other rows.
#pragma once
#include "cpu/gemm/product.h"
#if defined(FUSED_RNN_AMX) || defined(FUSED_RNN_AMX_INT8)
#include "cpu/gemm/tile_instructions.h"
#endif

namespace fused_rnn::cpu {
namespace {

#if defined(FUSED_RNN_AMX) || defined(FUSED_RNN_AMX_INT8)

constexpr int64_t kTileRows = 16;
// k of a tile, whose rows are cache lines.
template <class E>
constexpr int64_t kTileDepth = kCacheLine * kParts<E> / int64_t(sizeof(E));
template <class E>
constexpr int64_t tiles_of_depth(int64_t depth) {
  return (depth + kTileDepth<E> - 1) / kTileDepth<E>;
}
// K block that keeps one panel in L2; bfloat16, a third as many bytes, are not blocked.
template <class E>
constexpr int64_t kDepthAtOnce = kParts<E> > 1 ? kSplitDepthAtOnce : int64_t(1) << 40;
// Registers: sums, up to three parts of A, one of the panel. Bytes, whose panels are not padded to whole tiles, have two
// more for the rest of the depth, in place of second and third parts.
constexpr int kLeft = kMostVectors, kRight = 7;
constexpr int kLeftRest = kLeft + 1, kRightRest = kLeft + 2;

// For which this thread's tile registers are configured: the height of A's tiles, 0 if they are not, and the bytes of
// the rest of the depth. Configuring takes 50 ns.
struct TileShape {
  int64_t height, rest;
};
thread_local TileShape tile_shape = {};

inline void set_up_tiles(int64_t height, int64_t rest) {
  if (tile_shape.height == height && tile_shape.rest == rest) return;
  TileSetup setup;
  for (int i = 0; i < 8; ++i) {
    setup.row_bytes[i] = kCacheLine;
    setup.rows[i] = uint8_t(i < kRight ? height : kTileRows);
  }
  if (rest > 0) {
    setup.row_bytes[kLeftRest] = uint16_t(rest);
    setup.rows[kRightRest] = uint8_t(rest / 4);
  }
  configure_tiles(setup);
  tile_shape = {height, rest};
}

// Runs a task and releases the tile registers after it: while in use, Linux saves them at every context switch.
template <auto run, class... Args>
void in_tiles(Args... args) {
  run(args...);
  if (tile_shape.height == 0) return;
  release_tiles();
  tile_shape = {};
}

// One tile of rows times one panel: parts i of A and j of the panel for all i + j < kParts. Vector kVector of the panel
// is accumulated into sum kTo. between() is called after each vector of every 32 k: vector code to overlap with the
// tile products.
template <class E, class Vectors, class To>
struct TileProduct;
template <class E, int... kVector, int... kTo>
struct TileProduct<E, std::integer_sequence<int, kVector...>, std::integer_sequence<int, kTo...>> {
  static constexpr int kVectors = sizeof...(kVector);
  static constexpr int kLast = kParts<E> - 1;
  static constexpr int64_t kTileBytes = kTileRows * kCacheLine;
  // In a panel: from one vector, and from one line of it, to the next. Vectors alternate where few rows need them to.
  static constexpr int64_t kVectorApart = kTiles<E> ? kParts<E> * kTileBytes : kCacheLine;
  static constexpr int64_t kLineApart = kTiles<E> ? kCacheLine : kVectors * kCacheLine;

  template <class Between>
  FUSED_RNN_INLINE static void add(int64_t depth, const E* a, int64_t stride, const E* panel, Between between) {
    const char* b = reinterpret_cast<const char*>(panel);
    int64_t k = 0;
    for (; k + kTileDepth<E> <= depth; k += kTileDepth<E>, b += kVectors * kParts<E> * kTileBytes) {
      load_left(a + k, stride, std::make_integer_sequence<int, kParts<E>>{});
      ((add_vector<kTo>(b + kVector * kVectorApart, std::make_integer_sequence<int, kParts<E>>{}), between()), ...);
    }
    if constexpr (kDepthStep<E> < kTileDepth<E>) {
      if (k == depth) return;
      load_tile<kLeftRest>(a + k, stride);
      ((load_tile<kRightRest>(b + kVector * kVectorApart, kLineApart), add_byte_products<kTo, kLeftRest, kRightRest>(),
        between()),
       ...);
    }
  }

 private:
  template <int... kPart>
  FUSED_RNN_INLINE static void load_left(const E* a, int64_t bytes, std::integer_sequence<int, kPart...>) {
    (load_tile<kLeft + kPart>(reinterpret_cast<const char*>(a) + kPart * kCacheLine, bytes), ...);
  }
  template <int kSum, int... kPart>
  FUSED_RNN_INLINE static void add_vector(const char* b, std::integer_sequence<int, kPart...>) {
    (add_part<kSum>(b + (kLast - kPart) * kTileBytes, std::make_integer_sequence<int, kPart + 1>{}), ...);
  }
  // Smallest products first, to lose least to rounding.
  template <int kSum, int... kPart>
  FUSED_RNN_INLINE static void add_part(const char* b, std::integer_sequence<int, kPart...>) {
    load_tile<kRight>(b, kLineApart);
    if constexpr (std::is_same_v<Arithmetic<E>, float>)
      (add_bfloat16_products<kSum, kLeft + sizeof...(kPart) - 1 - kPart, kRight>(), ...);
    else
      add_byte_products<kSum, kLeft, kRight>();
  }
};

// Rows of A for one tile: read in place if their stride is constant, or else gathered.
template <class E>
struct TileOfRows {
  const E* rows[kTileRows];
  int64_t height, stride = 0;  // in bytes
  bool even = true;

  template <class Row>
  TileOfRows(Row row, int64_t first, int64_t height) : height(height) {
    for (int64_t i = 0; i < height; ++i) rows[i] = row(first + i);
    const auto address = [&](int64_t i) { return reinterpret_cast<const char*>(rows[i]); };
    if (height > 1) stride = address(1) - address(0);
    for (int64_t i = 2; i < height; ++i) even = even && address(i) - address(i - 1) == stride;
  }
};

// Rows times a K block of a panel.
template <int kVectors, class To, class E, class Between>
FUSED_RNN_INLINE void add_panel(const TileOfRows<E>& a, int64_t k0, int64_t depth, const E* panel, Between between) {
  using Product = TileProduct<E, std::make_integer_sequence<int, kVectors>, To>;
  if (a.even) return Product::add(depth, a.rows[0] + k0, a.stride, panel, between);
  for (int64_t k = 0; k < depth; k += kGatheredDepth) {
    const int64_t deep = minimum(depth - k, kGatheredDepth);
    E gathered[kTileRows * kGatheredDepth] __attribute__((aligned(64)));
    for (int64_t i = 0; i < a.height; ++i) memcpy(gathered + i * deep, a.rows[i] + k0 + k, sizeof(E) * deep);
    Product::add(deep, gathered, deep * int64_t(sizeof(E)), panel + k * kVectors * Vec<float>::kLanes, between);
  }
}

// `multiply` of product.h, on tiles. The epilogue (`use`) of a tile's rows is interleaved with the products of the next
// tile, a few rows after each vector of every 32 k, so that tile and vector units overlap: after the last tile
// instruction AVX-512 would run at half rate for 200 ns.
template <class Matrix, class E, class Row, class Fetch, class Use, class Results, class Also>
class TileProducts {
 public:
  TileProducts(const Matrix& matrix, const E* packed, const LeftRows<Row>& left, Fetch fetch, Use use, Results results,
               const Also& second)
      : matrix_(matrix), packed_(packed), left_(left), fetch_(fetch), use_(use), results_(results), second_(second) {}

  void run(PanelRange panels) {
    const int64_t bytes = matrix_.offset(panels.last - 1) - matrix_.offset(panels.first);
    fetches_ahead_ = bytes * int64_t(sizeof(E)) > kFetchFromBytes;
    const bool in_blocks = depth() > kDepthAtOnce<E>;
    const int64_t most = in_blocks ? kTilesAtOnce * kTileRows : maximum(1, left_.count);
    const int64_t groups = (left_.count + most - 1) / most;
    const int64_t rows = groups > 0 ? (left_.count + groups - 1) / groups : 0;
    const bool many_bytes = in_blocks && rows * depth() * int64_t(sizeof(E)) > kMostRowBytes;
    const int64_t panels_at_once = many_bytes ? kPanelsAtOnce : 1;
    ring_ = panels_at_once * kTilesAtOnce + 1;
    for (int64_t group = 0; group < groups; ++group, panels.back = !panels.back) {
      row0_ = left_.count * group / groups;
      rows_ = left_.count * (group + 1) / groups - row0_;
      tiles_ = (rows_ + kTileRows - 1) / kTileRows;
      height_ = (rows_ + tiles_ - 1) / tiles_;
      set_up_tiles(height_, depth() % kTileDepth<E> * int64_t(sizeof(E)) / kParts<E>);
      // If tiles overlap, results in memory cannot be accumulated block by block: some rows would count twice.
      const bool apart = results_(panels.first) == nullptr || tiles_ * height_ == rows_;
      blocks_ = apart ? maximum(1, (depth() + kDepthAtOnce<E> - 1) / kDepthAtOnce<E>) : 1;
      for (int64_t n = 0; n < panels.count(); n += panels_at_once, place_ += panels_at_once * tiles_)
        multiply_panels(panels, n, minimum(panels.count(), n + panels_at_once));
    }
    use_rest();
  }

 private:
  using Sum = Arithmetic<E>;
  static constexpr bool kSecond = !std::is_same_v<Also, NoSecond>;

  int64_t depth() const { return padded_depth<E>(matrix_.depth); }
  int64_t first_of(int64_t block) const {
    return block == blocks_ ? depth() : depth() * block / blocks_ / kTileDepth<E> * kTileDepth<E>;
  }
  const E* block_of(int64_t panel, int64_t block) const {
    return packed_ + matrix_.offset(panel) + first_of(block) * matrix_.panel_vectors(panel) * Vec<float>::kLanes;
  }

  // Some panels together: one K block of each, then the next K block.
  void multiply_panels(const PanelRange& panels, int64_t n0, int64_t n1) {
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t n = n0; n < n1; ++n) {
        const E* next = block_of(panels.after(n), 0);
        if (n + 1 < n1)
          next = block_of(panels.at(n + 1), block);
        else if (block + 1 < blocks_)
          next = block_of(panels.at(n0), block + 1);
        multiply_block(panels.at(n), block, place_ + (n - n0) * tiles_, next);
      }
  }

  void multiply_block(int64_t panel, int64_t block, int64_t place, const E* next) {
    const int vectors = matrix_.panel_vectors(panel);
    choose_block<1>(vectors, panel, block, place, next);
    choose_block<2>(vectors, panel, block, place, next);
    choose_block<3>(vectors, panel, block, place, next);
    choose_block<4>(vectors, panel, block, place, next);
  }
  template <int kVectors>
  void choose_block(int vectors, int64_t panel, int64_t block, int64_t place, const E* next) {
    if constexpr (kVectors % Matrix::kVectorsTogether == 0)
      if (vectors == kVectors) multiply_block<kVectors>(panel, block, place, next);
  }

  template <int kVectors>
  void multiply_block(int64_t panel, int64_t block, int64_t place, const E* next) {
    constexpr int kSums = kVectors + kVectors - Also::template shared<kVectors>();
    if constexpr (kSums <= kMostVectors) {
      constexpr int64_t kWidth = kSums * Vec<float>::kLanes;
      Sum* const kept = results_(panel);
      PanelBlock b = {panel, block_of(panel, block), next, first_of(block), 0, block > 0, block + 1 == blocks_};
      b.depth = first_of(block + 1) - b.k0;
      for (int64_t tile = 0; tile < tiles_; ++tile) {
        // All tiles have one height: the last one may overlap the one before and recompute some rows.
        const int64_t known = row0_ + tile * height_, i0 = minimum(known, row0_ + rows_ - height_);
        Sum* const out = kept ? kept + i0 * kWidth : sums_[(place + tile) % ring_];
        if (block == 0)
          for (int64_t i = known; i < i0 + height_; ++i) fetch_(panel, i);
        multiply_tile<kVectors, kSums>(b, tile, i0, out);
        if (!b.is_last) continue;
        use_rest();
        before_ = {panel, known, i0 + height_, kWidth, out + (known - i0) * kWidth};
      }
    }
  }

  // One K block of a panel.
  struct PanelBlock {
    int64_t panel;
    const E *from, *next;  // the block; the data to be read after it
    int64_t k0, depth;
    bool add_to_out, is_last;
  };

  // The tile whose first row is i0.
  template <int kVectors, int kSums>
  FUSED_RNN_INLINE void multiply_tile(const PanelBlock& b, int64_t tile, int64_t i0, Sum* out) {
    using Vectors = std::make_integer_sequence<int, kVectors>;
    const int64_t pauses = tiles_of_depth<E>(b.depth + (b.is_last ? second_.depth() : 0)) * kVectors;
    const int64_t at_once = pauses > 0 ? (before_.end - before_.next + pauses - 1) / pauses : 0;
    // Each tile prefetches a share of the next block.
    const int64_t fetches = fetches_ahead_ ? (kParts<E> * kTileRows + tiles_ - 1) / tiles_ : 0;
    const char* coming =
        reinterpret_cast<const char*>(b.next) + tile * fetches * tiles_of_depth<E>(b.depth) * kVectors * kCacheLine;
    const auto between = [&] {
      for (int64_t i = 0; i < fetches; ++i, coming += kCacheLine) __builtin_prefetch(coming, 0, 2);
      for (int64_t i = 0; i < at_once && before_.next < before_.end; ++i) use_next();
    };
    [&]<int... kSum>(std::integer_sequence<int, kSum...>) {
      constexpr int64_t kLine = kSums * kCacheLine;
      if (b.add_to_out)
        (load_tile<kSum>(out + kSum * Vec<float>::kLanes, kLine), ...);
      else
        (clear_tile<kSum>(), ...);
      add_panel<kVectors, Vectors>(TileOfRows<E>(left_.row, i0, height_), b.k0, b.depth, b.from, between);
      if constexpr (kSecond)
        if (b.is_last)
          add_panel<kVectors, decltype(Also::template sums<kVectors>(Vectors{}))>(
              TileOfRows<E>(second_.row, i0, height_), 0, second_.depth(),
              second_.packed + second_.matrix.offset(b.panel), between);
      (store_tile<kSum>(out + kSum * Vec<float>::kLanes, kLine), ...);
    }(std::make_integer_sequence<int, kSums>{});
  }

  FUSED_RNN_INLINE void use_next() {
    use_(before_.panel, before_.next++, before_.sums);
    before_.sums += before_.width;
  }
  void use_rest() {
    while (before_.next < before_.end) use_next();
  }

  const Matrix& matrix_;
  const E* packed_;
  const LeftRows<Row>& left_;
  Fetch fetch_;
  Use use_;
  Results results_;
  const Also& second_;

  bool fetches_ahead_;
  int64_t row0_, rows_, tiles_, height_;  // of the group
  struct {
    int64_t panel, next, end, width;
    const Sum* sums;  // of row `next`
  } before_ = {};     // the previous tile, whose epilogue is under way
  int64_t blocks_;
  // A ring buffer, so that the tile still in its epilogue when a panel begins is not overwritten.
  int64_t place_ = 0, ring_;
  Sum sums_[kPanelsAtOnce * kTilesAtOnce + 1][kTileRows * kMostVectors * Vec<float>::kLanes]
      __attribute__((aligned(64)));
};

template <class Matrix, class E, class Row, class Fetch, class Use, class Results = KeepNothing>
void multiply_on_tiles(const Matrix& matrix, const E* packed, PanelRange panels, const LeftRows<Row>& left, Fetch fetch,
                       Use use, Results results = {}) {
  const NoSecond none;
  if (panels.count() > 0) TileProducts(matrix, packed, left, fetch, use, results, none).run(panels);
}

#endif

#ifdef FUSED_RNN_AMX

template <class Matrix, class E, class Row, class Fetch, class Use, class Results = KeepNothing>
void multiply(const Matrix& matrix, const E* packed, PanelRange panels, const LeftRows<Row>& left, Fetch fetch, Use use,
              Results results = {}) {
  multiply_on_tiles(matrix, packed, panels, left, fetch, use, results);
}

// Two products accumulated into one sum, see Second.
template <class Matrix, class E, class Row, class Fetch, class Use, class Also>
void multiply_both(const Matrix& matrix, const E* packed, PanelRange panels, const LeftRows<Row>& left, Fetch fetch,
                   Use use, const Also& second) {
  if (panels.count() > 0) TileProducts(matrix, packed, left, fetch, use, KeepNothing{}, second).run(panels);
}

#endif

#if !defined(FUSED_RNN_AMX) && !defined(FUSED_RNN_AMX_INT8)
template <auto run, class... Args>
void in_tiles(Args... args) {
  run(args...);
}
#endif

}  // namespace
}  // namespace fused_rnn::cpu
