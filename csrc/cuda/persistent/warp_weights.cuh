// A warp's rows of the block's weights, resident for the whole sequence: some chunks of K in registers, the others
// parked in shared memory. Chunks are dealt to the kWarpsK warps along K in turn, which balances shallow layers.
#pragma once
#include "cuda/persistent/exchange.cuh"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

// Link: how blocks exchange the other operand (exchange.cuh).
template <class Link, class ProductsType, Tiles kTiles>
class WarpWeights {
 public:
  using Products = ProductsType;
  using S = typename Products::Storage;
  using T = typename Products::T;
  using Sums = T[kTiles.tiles_m][Products::kSums];

 private:
  static constexpr int kWarpsK = kTiles.warps_k, kTilesM = kTiles.tiles_m, kTilesN = kTiles.tiles_n;
  static constexpr int kHeld = kTiles.held, kParked = kTiles.parked, kChunks = kHeld + kParked;
  static constexpr int kWords = Products::kWords, kWarps = kTiles.threads() / 32;
  static constexpr int kColumns = kTiles.columns();
  static constexpr unsigned kChunkBytes = kChunk * kColumns * sizeof(S), kStride = kWarpsK * kChunkBytes;
  static constexpr unsigned kParkedBytes = kTilesM * kParked * kWords * 4 * 32;  // of a warp

  // Scalars need every number in eight lanes. If the slot is in L2, each lane loads 16 bytes of a chunk and shares them
  // through shared memory: an eighth of the loads and registers.
  static constexpr bool kShares = !Products::kTensorCores && !Link::kRingIsShared;
  static constexpr int kLoads = Products::kLoads;

  // Loads in flight per lane, and independent accumulators: mma latency is some 30 cycles.
  static constexpr int kKept = kTilesM * (kHeld * kWords + (Products::kTensorCores ? 0 : Products::kSums));
  static constexpr int kInFlight = Products::kTensorCores && kKept >= 144 ? 2 : kKept >= 128 || sizeof(S) == 8 ? 4 : 8;
  static constexpr int kStage = kLoads >= kInFlight ? 1 : kInFlight / kLoads;
  static constexpr int kSplit = kTilesM * kTilesN >= 4 || Products::kSums > 8 ? 1 : 4 / (kTilesM * kTilesN);

 public:
  static constexpr int kPacks = kChunks * kTilesM * kWords / 4 * 32;  // of 16 bytes, per warp
  static constexpr unsigned kSharedBytes = kWarps * (kParkedBytes + (kShares ? kChunkBytes : 0));

  // `packed`: the block's part of what pack_weights.cuh leaves.
  FUSED_RNN_DEVICE WarpWeights(unsigned char* shared, const Pack<4>* packed)
      : parked_(keep_shared(reinterpret_cast<Pack<4>*>(shared + threadIdx.x / 32 * kParkedBytes) + lane_of_warp())),
        shared_chunk_(shared + kWarps * kParkedBytes + threadIdx.x / 32 * kChunkBytes) {
    packed += threadIdx.x / 32 * kPacks + lane_of_warp();
    FUSED_RNN_UNROLL
    for (int chunk = 0; chunk < kHeld; ++chunk) FUSED_RNN_UNROLL
    for (int tile = 0; tile < kTilesM; ++tile) FUSED_RNN_UNROLL
    for (int w = 0; w < kWords; w += 4) {
      const Pack<4> pack = packed[((chunk * kTilesM + tile) * kWords + w) / 4 * 32];
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) held_[chunk][tile][w + i] = pack.word[i];
    }
    constexpr int kPacksOfChunk = kTilesM * kWords / 4 * 32;
    FUSED_RNN_NO_UNROLL
    for (int chunk = kHeld; chunk < kChunks; ++chunk) {
      Pack<4> pack[kTilesM * kWords / 4];  // all loads in flight together
      FUSED_RNN_UNROLL
      for (int i = 0; i < kTilesM * kWords / 4; ++i) pack[i] = packed[chunk * kPacksOfChunk + i * 32];
      FUSED_RNN_UNROLL
      for (int i = 0; i < kTilesM * kWords / 4; ++i) parked_[(chunk - kHeld) * kPacksOfChunk + i * 32] = pack[i];
    }
  }

  // Where the lane's loads begin in a slot.
  FUSED_RNN_DEVICE unsigned first_byte() const {
    const unsigned of_warp = threadIdx.x / 32 % kWarpsK * kChunkBytes;
    if constexpr (Products::kTensorCores)
      return of_warp + Products::first_byte();
    else
      return of_warp + (kShares ? lane_of_warp() * 16 : 0);
  }
  // The warp's partial sums. `from`: first_byte() of a slot; `chunks`: of each warp.
  FUSED_RNN_DEVICE void multiply(Link& link, const unsigned char* from, int chunks, Sums& sums) const {
    if constexpr (Products::kTensorCores)
      multiply_pieces(link, from, sums);
    else
      multiply_numbers(link, from, chunks, sums);
  }

 private:
  // Words first .. first + kCount - 1 of a piece.
  template <int kCount>
  FUSED_RNN_DEVICE void words_of(int chunk, int tile, int first, uint32_t (&words)[kCount]) const {
    FUSED_RNN_UNROLL
    for (int w = 0; w < kCount; w += 4) {
      const Pack<4> pack = parked_[(((chunk - kHeld) * kTilesM + tile) * kWords + first + w) / 4 * 32];
      FUSED_RNN_UNROLL
      for (int i = 0; i < 4; ++i) words[w + i] = pack.word[i];
    }
  }

  // Loads, again until none is missing: one round trip if the data is there.
  template <int kCount, class Load>
  static FUSED_RNN_DEVICE void load_all(Link& link, Pack<4> (&loaded)[kCount], Load load) {
    FirstLook first;
    bool again = false;
    do {
      unrolled<kCount>([&](auto i) { loaded[i] = load(i); });
      if constexpr (Link::kPolls) again = Link::is_missing(loaded) && link.keep_waiting(first);
    } while (again);
  }

  // Tensor cores: each load is a fragment.
  FUSED_RNN_DEVICE void multiply_pieces(Link& link, const unsigned char* from, Sums& sums) const {
    T sum[kSplit][kTilesM][Products::kSums] = {};
    unrolled<(kChunks + kStage - 1) / kStage>([&](auto stage) {
      constexpr int kFirst = stage * kStage, kOfStage = kChunks - kFirst < kStage ? kChunks - kFirst : kStage;
      Pack<4> loaded[kOfStage * kLoads];
      load_all(link, loaded, [&](auto i) {
        constexpr int kOffset = (kFirst + i / kLoads) * kStride + Products::byte_of(i % kLoads);
        return link.template load<kOffset>(from);
      });
      unrolled<kOfStage>([&](auto i) {
        constexpr int chunk = kFirst + i;
        FUSED_RNN_UNROLL
        for (int tile = 0; tile < kTilesM; ++tile) {
          uint32_t words[kWords];
          if (chunk < kHeld) {
            FUSED_RNN_UNROLL
            for (int w = 0; w < kWords; ++w) words[w] = held_[chunk < kHeld ? chunk : 0][tile][w];
          } else {
            words_of(chunk, tile, 0, words);
          }
          FUSED_RNN_UNROLL
          for (int l = 0; l < kLoads; ++l) Products::add(sum[chunk % kSplit][tile], words, l, loaded[i * kLoads + l]);
        }
      });
    });
    FUSED_RNN_UNROLL
    for (int tile = 0; tile < kTilesM; ++tile) FUSED_RNN_UNROLL
    for (int i = 0; i < Products::kSums; ++i) {
      sums[tile][i] = sum[0][tile][i];
      FUSED_RNN_UNROLL
      for (int split = 1; split < kSplit; ++split) sums[tile][i] += sum[split][tile][i];
    }
  }

  // Of the first `chunks` chunks, at least one. Held chunks are unrolled, as registers cannot be indexed at run time;
  // parked chunks are a loop.
  FUSED_RNN_DEVICE void multiply_numbers(Link& link, const unsigned char* slot, int chunks, Sums& sums) const {
    Pack<4> loaded[kStage][kLoads];
    FUSED_RNN_UNROLL
    for (int tile = 0; tile < kTilesM; ++tile) FUSED_RNN_UNROLL
    for (int i = 0; i < Products::kSums; ++i) sums[tile][i] = T(0);
    if constexpr (kShares) {
      FUSED_RNN_UNROLL
      for (int i = 0; i < kStage; ++i)
        if (i < chunks) fetch(link, slot + i * kStride, loaded[i]);
    }
    const auto numbers_of = [&](int chunk, Pack<4>(&own)[kLoads]) -> const unsigned char* {
      const unsigned char* const from = slot + chunk * kStride;
      if constexpr (!kShares) return from;
      // Until all lanes have read the chunk before. The reads of the last step are behind its block barrier.
      if (chunk > 0) __syncwarp();
      share(link, from, own);
      if (chunk + kStage < chunks) fetch(link, from + kStage * kStride, own);
      return shared_chunk_;
    };
    FUSED_RNN_UNROLL
    for (int chunk = 0; chunk < kHeld; ++chunk) {
      if (chunk > 0 && chunk >= chunks) continue;
      const unsigned char* const numbers = numbers_of(chunk, loaded[chunk % kStage]);
      FUSED_RNN_UNROLL
      for (int part = 0; part < Products::kLoadsOfColumn; ++part)
        add(sums, numbers, part, [&](int tile, auto& words) {
          FUSED_RNN_UNROLL
          for (int w = 0; w < Products::kWordsOfLoad; ++w)
            words[w] = held_[chunk][tile][part * Products::kWordsOfLoad + w];
        });
    }
    if constexpr (kParked > 0) {
      FUSED_RNN_NO_UNROLL
      for (int first = kHeld; first < chunks; first += kStage) FUSED_RNN_UNROLL
      for (int i = 0; i < (kStage < kParked ? kStage : kParked); ++i) {
        const int chunk = first + i;
        if (chunk >= chunks) continue;
        const unsigned char* const numbers = numbers_of(chunk, loaded[(kHeld + i) % kStage]);
        FUSED_RNN_NO_UNROLL  // else the compiler hoists the loads of a whole chunk, and spills
        for (int part = 0; part < Products::kLoadsOfColumn; ++part)
          add(sums, numbers, part,
              [&](int tile, auto& words) { words_of(chunk, tile, part * Products::kWordsOfLoad, words); });
      }
    }
  }

  FUSED_RNN_DEVICE static void fetch(const Link& link, const unsigned char* from, Pack<4> (&own)[kLoads]) {
    unrolled<kLoads>([&](auto l) { own[l] = link.template load<l * 512>(from); });
  }
  FUSED_RNN_DEVICE void share(Link& link, const unsigned char* from, Pack<4> (&own)[kLoads]) const {
    if constexpr (Link::kPolls) {  // without braces nvcc parses the loop below as part of this, and drops it
      FirstLook first;
      while (Link::is_missing(own)) {
        if (!link.keep_waiting(first)) break;
        fetch(link, from, own);
      }
    }
    FUSED_RNN_UNROLL
    for (int l = 0; l < kLoads; ++l)
      *reinterpret_cast<Pack<4>*>(shared_chunk_ + l * 512 + lane_of_warp() * 16) = own[l];
    __syncwarp();
  }

  // Products of a part of a chunk; take(tile, words) provides the weights, read once for all columns.
  template <class Take>
  static FUSED_RNN_DEVICE void add(Sums& sums, const unsigned char* numbers, int part, Take take) {
    uint32_t words[kTilesM][Products::kWordsOfLoad];
    FUSED_RNN_UNROLL
    for (int tile = 0; tile < kTilesM; ++tile) take(tile, words[tile]);
    FUSED_RNN_UNROLL
    for (int column = 0; column < kColumns; ++column) {
      const Pack<4> loaded = *reinterpret_cast<const Pack<4>*>(numbers + Products::pair_byte(column / 2 % 4) +
                                                               Products::byte_of(part, column));
      FUSED_RNN_UNROLL
      for (int tile = 0; tile < kTilesM; ++tile) Products::add(sums[tile], words[tile], column, loaded);
    }
  }

  Pack<4>* const parked_;
  unsigned char* const shared_chunk_;
  uint32_t held_[kHeld > 0 ? kHeld : 1][kTilesM][kWords];
};

}  // namespace
}  // namespace fused_rnn::cuda
