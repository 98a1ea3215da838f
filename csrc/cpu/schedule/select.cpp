#include "cpu/schedule/select.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <numeric>

#include "core/registry.h"
#include "cpu/schedule/tuning.h"

namespace fused_rnn::cpu {

constexpr int64_t kNumbersOfLine = 16;  // of float; two lines of double

Load load_of(const Layer& layer) {
  const int64_t problems = layer.members * layer.directions;
  const int64_t gates = traits_of_any(layer.cell).gates;
  const int64_t depth = (layer.tokens ? 0 : layer.input_size) + layer.output_size;  // tokens are looked up
  // A weight of 8 bits costs as much as a quarter of a float.
  const bool quantized = layer.format != WeightFormat::kOwn;
  const int64_t cost = quantized ? 1 : 4;
  const int64_t weights = gates * layer.hidden * depth * cost / 4;
  return {layer.dtype,
          problems,
          layer.batch,
          layer.rows,
          layer.hidden,
          weights,
          gates * layer.hidden * layer.output_size * cost / 4,
          problems * layer.rows * weights,
          1 + normalizes(layer) + normalizes_c(layer),
          layer.packed != nullptr,
          layer.input_size % kNumbersOfLine == 0 && layer.output_size % kNumbersOfLine == 0,
          quantized};
}

namespace {

// How a problem is divided among its threads: into independent runs of batch rows, or into shares of the units, with a
// barrier after every step.
struct Division {
  int64_t runs, shares;
};

// Below this many rows a thread, split the units, not the batch.
int64_t rows_worth_sharing(int64_t weights, const Thresholds& thresholds) {
  if (weights < kFewWeightsToShare) return 0;
  return weights < kManyWeightsToShare ? thresholds.rows_to_share_some : thresholds.rows_to_share_many;
}

Division divide_on_vectors(const Load& load, Reading weights, int64_t threads, const Thresholds& thresholds) {
  const bool unpacked = weights == Reading::kBlocks || (!load.packed && load.rows <= kMostRowsToShareUnpacked);
  const bool few_rows =
      load.batch < rows_worth_sharing(load.recurrent_weights / load.stretches, thresholds) * threads ||
      (unpacked && load.hidden >= threads * kLeastUnitsOfShare);
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

// The number of rows over all steps from which sums have the order of panels: the same for ids and for one-hot rows, so
// that their results agree.
int64_t rows_for_panels(const Load& load, const Thresholds& thresholds) {
  switch (load.dtype) {
    case Dtype::kHalf:
      return thresholds.least_rows_to_pack_half;
    case Dtype::kBFloat16:
      return thresholds.least_rows_to_pack_bfloat16;
    default:
      if (load.recurrent_weights < kManyWeightsToPack) return thresholds.least_rows_to_pack_few;
      return load.whole_lines && load.recurrent_weights >= kMostWeightsToPackSoon ? thresholds.least_rows_to_pack_most
                                                                                  : thresholds.least_rows_to_pack_many;
  }
}

// The number of rows of a step from which blocks of panels are faster than rows of weights.
int64_t rows_for_blocks(const Load& load, const Thresholds& thresholds) {
  if (!load.whole_lines)
    return load.recurrent_weights < kManyWeightsForBlocks ? kLeastRowsForBlocksSplitFew : kLeastRowsForBlocksSplitMany;
  return load.recurrent_weights < kManyWeightsToPack ? thresholds.least_rows_to_pack_few
                                                     : thresholds.least_rows_to_pack_many;
}

Reading read_on(Isa isa, const Load& load, const Thresholds& thresholds) {
  if (load.packed) return Reading::kPacked;
  if (load.rows < rows_for_panels(load, thresholds) && load.batch < rows_for_blocks(load, thresholds))
    return Reading::kRows;
  const int64_t most_steps = load.recurrent_weights < kManyWeightsForBlocks ? 1 : kMostStepsInBlocks;
  return isa == Isa::kAmx || load.rows > load.batch * most_steps ? Reading::kPacked : Reading::kBlocks;
}

std::array<std::atomic<int64_t>, kThresholds>& current() {
  static auto* const values = [] {
    auto* const fresh = new std::array<std::atomic<int64_t>, kThresholds>;
    const auto shipped = std::bit_cast<std::array<int64_t, kThresholds>>(Thresholds{});
    std::copy(shipped.begin(), shipped.end(), fresh->begin());
    return fresh;
  }();
  return *values;
}

}  // namespace

Thresholds current_thresholds() {
  std::array<int64_t, kThresholds> values;
  std::copy(current().begin(), current().end(), values.begin());
  return std::bit_cast<Thresholds>(values);
}

void set_thresholds(const Thresholds& thresholds) {
  const auto values = std::bit_cast<std::array<int64_t, kThresholds>>(thresholds);
  std::copy(values.begin(), values.end(), current().begin());
}

Plan select(std::span<const Isa> isas, const Load& load, int64_t threads, const Thresholds& thresholds) {
  const bool large = load.batch >= kLeastSplitBatch && load.hidden >= kLeastSplitUnits &&
                     (load.packed || load.rows >= kLeastSplitRows);
  const Isa isa = large ? isas.back() : isas.front();
  const bool splits = isa == Isa::kAmx && load.dtype == Dtype::kFloat && !load.quantized;
  const Reading weights = splits ? Reading::kPacked : read_on(isa, load, thresholds);
  if (load.multiply_adds < thresholds.least_work_for_threads || threads == 1) return {isa, 1, 1, 1, nullptr, weights};
  // Problems run concurrently; if there are fewer than threads, each is divided as well.
  const int64_t each = (threads + load.problems - 1) / std::max<int64_t>(load.problems, 1);
  const Division division = splits ? divide_on_tiles(load, each) : divide_on_vectors(load, weights, each, thresholds);
  return {isa, threads, division.runs, division.shares, nullptr, weights};
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
