#include "cpu/schedule/select.h"

#include <algorithm>
#include <numeric>

#include "core/dispatch.h"
#include "cpu/schedule/tuning.h"

namespace fused_rnn::cpu {

Load load_of(const Layer& layer) {
  const int64_t problems = layer.members * layer.directions;
  const int64_t gates = dispatch_cell(layer.cell, [](auto cell) { return int64_t(decltype(cell)::type::kGates); });
  const int64_t depth = (layer.tokens ? 0 : layer.input_size) + layer.output_size;  // tokens are looked up
  // A weight of 8 bits costs as much as a quarter of a float.
  const int64_t cost = layer.format == WeightFormat::kOwn ? 4 : 1;
  const int64_t weights = gates * layer.hidden * depth * cost / 4;
  return {layer.dtype,
          problems,
          layer.batch,
          layer.rows,
          layer.hidden,
          weights,
          gates * layer.hidden * layer.output_size * cost / 4,
          problems * layer.rows * weights,
          layer.packed != nullptr};
}

namespace {

// How a problem is divided among its threads: into independent runs of batch rows, or into shares of the units, with a
// barrier after every step.
struct Division {
  int64_t runs, shares;
};

// Below this many rows a thread, split the units, not the batch.
int64_t rows_worth_sharing(int64_t weights) {
  if (weights < kFewWeightsToShare) return 0;
  return weights < kManyWeightsToShare ? kRowsToShareSome : kRowsToShareMany;
}

Division divide_on_vectors(const Load& load, int64_t threads) {
  const bool few_rows = load.batch < rows_worth_sharing(load.recurrent_weights) * threads;
  if (few_rows && load.hidden >= kLeastUnitsToShare)
    return {1, std::clamp<int64_t>(threads, 1, load.hidden / kLeastUnitsOfShare)};
  return {std::clamp<int64_t>(threads, 1, std::max<int64_t>(load.batch, 1)), 1};
}

Division divide_on_tiles(const Load& load, int64_t threads) {
  const int64_t runs = std::clamp<int64_t>(threads, 1, std::max<int64_t>(load.batch / kLeastRowsOfRun, 1));
  const int64_t shares = std::clamp<int64_t>(threads, 1, std::max<int64_t>(load.hidden / kLeastUnitsOfShare, 1));
  const bool few_rows = load.batch < kFewRowsOfWide * threads;
  const bool by_units = load.hidden >= kWideLayer && (few_rows || load.weights > kManyWeightsOfWide);
  return by_units || shares > runs ? Division{1, shares} : Division{runs, 1};
}

// The number of rows from which packing pays: the same for ids and for one-hot rows, so that their results agree.
int64_t rows_to_pack_for(const Load& load) {
  switch (load.dtype) {
    case Dtype::kHalf:
      return kLeastRowsToPackHalf;
    case Dtype::kBFloat16:
      return kLeastRowsToPackBFloat16;
    default:
      if (load.recurrent_weights < kManyWeightsToPack) return kLeastRowsToPackFew;
      return load.recurrent_weights < kMostWeightsToPackSoon ? kLeastRowsToPackMany : kLeastRowsToPackMost;
  }
}

}  // namespace

Plan select(std::span<const Isa> isas, const Load& load, int64_t threads) {
  const bool large = load.batch >= kLeastSplitBatch && load.hidden >= kLeastSplitUnits &&
                     (load.packed || load.rows >= kLeastSplitRows);
  const Isa isa = large ? isas.back() : isas.front();
  const bool splits = isa == Isa::kAmx && load.dtype == Dtype::kFloat;
  const bool pack = load.packed || load.rows >= rows_to_pack_for(load) || splits;
  if (load.multiply_adds < kLeastWorkForThreads || threads == 1) return {isa, 1, 1, 1, nullptr, pack};
  // Problems run concurrently; if there are fewer than threads, each is divided as well.
  const int64_t each = (threads + load.problems - 1) / std::max<int64_t>(load.problems, 1);
  const Division division = splits ? divide_on_tiles(load, each) : divide_on_vectors(load, each);
  return {isa, threads, division.runs, division.shares, nullptr, pack};
}

std::vector<int64_t> order_rows(const Layer& layer, const Plan& plan) {
  if (!layer.lengths || layer.batch == 0) return {};
  const int64_t B = layer.batch, C = plan.row_chunks, members = layer.lengths_member_stride ? layer.members : 1;
  std::vector<int64_t> order(members * B), sorted(B), next(C);
  for (int64_t m = 0; m < members; ++m) {
    const int64_t* lengths = layer.lengths + m * layer.lengths_member_stride;
    std::iota(sorted.begin(), sorted.end(), 0);
    std::stable_sort(sorted.begin(), sorted.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    for (int64_t c = 0; c < C; ++c) next[c] = B * c / C;
    int64_t chunk = 0;
    for (const int64_t row : sorted) {
      while (next[chunk] == B * (chunk + 1) / C) chunk = (chunk + 1) % C;
      order[m * B + next[chunk]++] = row;
      chunk = (chunk + 1) % C;
    }
  }
  return order;
}

}  // namespace fused_rnn::cpu
