// Packs W_hh, once per pass, in the order in which the persistent kernel's lanes hold it:
//   [problem][block of a group][warp][chunk of K][tile][16 bytes of a piece][lane]
// so that a block's prologue is a few wide loads without per-weight indexing.
#pragma once
#include "cuda/device/each_unit.cuh"
#include "cuda/persistent/arithmetic.cuh"
#include "cuda/persistent/quads.cuh"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

struct Packing {
  Tiles tiles;
  int units, blocks;  // per block; per group
  int gates;
};

// Each thread writes 16 bytes. Padding is zeroed, as it takes part in the product.
template <class Products, Direction direction>
FUSED_RNN_DEVICE void pack(const Layer& layer, const Packing& p, Pack<4>* to) {
  using S = typename Products::Storage;
  constexpr int kPacks = Products::kWords / 4;
  const Tiles& tiles = p.tiles;
  const int hidden = static_cast<int>(layer.hidden);
  const int64_t of_warp = int64_t{32} * kPacks * tiles.tiles_m * (tiles.held + tiles.parked);
  const int64_t warps = tiles.warps_m * tiles.warps_k, blocks = problems(layer) * p.blocks;
  for_each(of_warp, warps, blocks, [&](int64_t i, int64_t warp_, int64_t block) {
    const int lane = static_cast<int>(i % 32), piece = static_cast<int>(i / 32 / kPacks);
    const int first_word = static_cast<int>(i / 32 % kPacks) * 4, warp = static_cast<int>(warp_);
    const int first_row = (warp / tiles.warps_k * tiles.tiles_m + piece % tiles.tiles_m) * 16;
    const int first_k = (piece / tiles.tiles_m * tiles.warps_k + warp % tiles.warps_k) * kChunk;
    const int first_unit = static_cast<int>(block % p.blocks) * p.units;
    const int64_t problem = block / p.blocks, m = problem / layer.directions;
    const S* const matrix =
        at<S>(pick(layer.weights, problem % layer.directions).hh, m * p.gates * layer.hidden * layer.hidden);
    // Forward: a row is a gate of a unit, K runs over units. Backward: a row is a unit, K runs over quads of units.
    const auto number = [&](int row, int k) {
      const int part = (first_row + row) / p.units, unit = first_unit + (first_row + row) % p.units, from = first_k + k;
      constexpr bool forward = direction == Direction::kForward;
      const int quad = from / (4 * p.gates), rest = from % (4 * p.gates);
      const bool by_unit = unit_by_unit<S>(p.gates);
      const int gate = forward ? part : by_unit ? rest % p.gates : rest / 4;
      const int out = forward ? unit : 4 * quad + (by_unit ? rest / p.gates : rest % 4), in = forward ? from : unit;
      if (gate >= p.gates || out >= hidden || in >= hidden || (!forward && part > 0)) return S{};
      return matrix[(int64_t{gate} * hidden + out) * hidden + in];
    };
    Pack<4> words;
    FUSED_RNN_UNROLL
    for (int w = 0; w < 4; ++w) words.word[w] = Products::word(lane, first_word + w, number);
    to[(block * warps + warp) * of_warp + i] = words;
  });
}

template <class Products, Direction direction>
__global__ void pack_weights(const Layer layer, const Packing p, Pack<4>* to) {
  if constexpr (kArchitecture >= (Products::kTensorCores ? 800 : 700)) pack<Products, direction>(layer, p, to);
}

template <class Products, Direction direction>
void launch_pack(const Layer& layer, const Packing& packing, void* to, void* stream) {
  const Tiles& tiles = packing.tiles;
  const Launch how = one_thread_each(int64_t{8} * Products::kWords * tiles.tiles_m * (tiles.held + tiles.parked),
                                     tiles.threads() / 32, problems(layer) * packing.blocks, stream);
  launch(how, pack_weights<Products, direction>, layer, packing, static_cast<Pack<4>*>(to));
}

}  // namespace
}  // namespace fused_rnn::cuda
