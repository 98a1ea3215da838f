#include "cpu/schedule/select.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>

#include "core/dispatch.h"
#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fused_rnn::cpu {
namespace {

// Has the processor tiles of bfloat16, and does Linux let this process use them? It asks to be asked once, since their
// state makes every thread's saved registers 8 KiB larger.
bool may_use_amx() {
#if defined(FUSED_RNN_X86_ISAS) && defined(__linux__)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  unsigned a, b, c, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAmxBf16) && (d & kAmxTile) &&
         syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

bool is_supported(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#ifdef FUSED_RNN_X86_ISAS  // all that -march=x86-64-v3 and -v4 let the compiler use, as far as it can be asked for
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    case Isa::kAvx512:
      return is_supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16:
      return is_supported(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx:
      return is_supported(Isa::kAvx512Bf16) && may_use_amx();
#endif
    default:
      return false;
  }
}

// Best first.
constexpr Isa kIsas[] = {Isa::kAmx, Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2, Isa::kBaseline};

std::string asked_isa() {
  const char* variable = std::getenv("FUSED_RNN_ISA");
  return variable ? variable : "";
}

Isa find_isa() {
  const std::string asked = asked_isa();
  for (const Isa isa : kIsas) {
    if (asked.empty() && is_supported(isa)) return isa;
    if (asked != isa_name(isa)) continue;
    if (is_supported(isa)) return isa;
    throw std::runtime_error("FUSED_RNN_ISA=" + asked + " is not supported by this processor or build");
  }
  throw std::runtime_error("FUSED_RNN_ISA must be baseline, avx2, avx512, avx512_bf16 or amx, got '" + asked + "'");
}

}  // namespace

Isa best_isa() {
  static const Isa isa = find_isa();
  return isa;
}

std::vector<Isa> isas_for(Dtype dtype) {
  const Isa isa = best_isa();
  const bool for_some = isa == Isa::kAvx512Bf16 || isa == Isa::kAmx;
  if (!for_some || dtype == Dtype::kBFloat16) return {isa};
  if (isa != Isa::kAmx || dtype != Dtype::kFloat) return {Isa::kAvx512};
  static const bool always = !asked_isa().empty();
  return always ? std::vector{Isa::kAmx} : std::vector{Isa::kAvx512, Isa::kAmx};
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

const Kernels& kernels_for(Isa isa, Dtype dtype) {
#ifdef FUSED_RNN_X86_ISAS
  if (isa == Isa::kAmx) return dtype == Dtype::kBFloat16 ? kKernelsAmxBf16 : kKernelsAmxFp32;
  if (isa == Isa::kAvx512Bf16) return kKernelsAvx512Bf16;
  if (isa == Isa::kAvx512) return kKernelsAvx512;
  if (isa == Isa::kAvx2) return kKernelsAvx2;
#endif
  (void)isa, (void)dtype;
  return kKernelsBaseline;
}

Load load_of(const Layer& layer) {
  const int64_t problems = layer.members * layer.directions;
  const int64_t gates = dispatch_cell(layer.cell, [](auto cell) { return int64_t(decltype(cell)::type::kGates); });
  const int64_t depth = (layer.tokens ? 0 : layer.input_size) + layer.output_size;  // tokens are looked up
  const int64_t weights = gates * layer.hidden * depth;
  return {layer.dtype,
          problems,
          layer.batch,
          layer.rows,
          layer.hidden,
          weights,
          gates * layer.hidden * layer.output_size,
          problems * layer.rows * weights,
          layer.packed != nullptr};
}

namespace {

// How many runs of batch rows, or shares of the units, for so many threads on one problem. Runs never wait for each
// other, shares meet after every step.
struct Pieces {
  int64_t runs, shares;
};

// For fewer rows than so many of each thread shares beat runs, which read all weights each: as measured. To meet after
// every step takes as long as to read some 20,000.
int64_t rows_worth_sharing(int64_t weights) {
  if (weights < 25'000) return 0;
  return weights < 45'000 ? 1 : 4;
}

Pieces pieces_on_vectors(const Load& load, int64_t threads) {
  const bool few_rows = load.batch < rows_worth_sharing(load.recurrent_weights) * threads && load.hidden >= 128;
  if (few_rows) return {1, std::clamp<int64_t>(threads, 1, load.hidden / 64)};
  return {std::clamp<int64_t>(threads, 1, std::max<int64_t>(load.batch, 1)), 1};
}

// Fewer rows than 8 take as long as 8. Of weights beyond the second-level cache each thread should read a part only.
Pieces pieces_on_tiles(const Load& load, int64_t threads) {
  constexpr int64_t kManyWeights = 700'000;
  const int64_t runs = std::clamp<int64_t>(threads, 1, std::max<int64_t>(load.batch / 8, 1));
  const int64_t shares = std::clamp<int64_t>(threads, 1, std::max<int64_t>(load.hidden / 64, 1));
  const bool wide = load.hidden >= 256 && (load.batch < 16 * threads || load.weights > kManyWeights);
  return wide || shares > runs ? Pieces{1, shares} : Pieces{runs, 1};
}

// From how many rows on packing pays. It reads and writes every weight once, and large matrices do not stay in the
// cache meanwhile; without it each row reads them all, which costs more where 16 bits are converted each time. Ids and
// the one-hot rows they stand for go the same way, and have the same results.
int64_t rows_to_pack_for(const Load& load) {
  constexpr int64_t kManyWeights = 30'000;
  switch (load.dtype) {
    case Dtype::kHalf:
      return 2;
    case Dtype::kBFloat16:
      return 4;
    default:
      return load.recurrent_weights < kManyWeights ? 5 : 10;
  }
}

}  // namespace

Plan select(const std::vector<Isa>& isas, const Load& load, int64_t threads) {
  // Below this a call is over before another thread has woken up.
  constexpr int64_t kWorthwhile = 250'000;
  // Floats in parts pay from so many rows on. Not by the number of threads, on which no bit of a result may depend.
  constexpr int64_t kTileRows = 16, kTileUnits = 64, kRowsToSplitFor = 256;
  const bool large =
      load.batch >= kTileRows && load.hidden >= kTileUnits && (load.packed || load.rows >= kRowsToSplitFor);
  const Isa isa = large ? isas.back() : isas.front();
  const bool splits = isa == Isa::kAmx && load.dtype == Dtype::kFloat;
  const bool pack = load.packed || load.rows >= rows_to_pack_for(load) || splits;
  if (load.multiply_adds < kWorthwhile || threads == 1) return {isa, 1, 1, 1, nullptr, pack};
  // Problems run side by side; when there are fewer than threads, each is cut as well.
  const int64_t each = (threads + load.problems - 1) / std::max<int64_t>(load.problems, 1);
  const Pieces pieces = splits ? pieces_on_tiles(load, each) : pieces_on_vectors(load, each);
  return {isa, threads, pieces.runs, pieces.shares, nullptr, pack};
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
