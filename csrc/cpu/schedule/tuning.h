// All measured thresholds of the CPU engine. Constants that follow from the instruction set or from cache geometry are
// next to their use.
//
// Measured in November 2026 on one Intel Xeon with AVX-512 and AMX, 2 cores with 2 MB of L2 each;
// benchmarks/results/NOTES.md has the figures. No other processor has its own values yet. The command beside a
// threshold measures the benchmark lines that it affects; change it, build, run the command again and compare:
//
//   python -m benchmarks cpu --only WORD... --threads N     lines whose names hold every word; see benchmarks/suites.py
//   python -m benchmarks features --only WORD...            likewise; see benchmarks/features.py
//
// "Add lines": the suites have no shapes on both sides of the threshold; add some in benchmarks/suites.py.
//
// "Split": float32 as three bfloat16, on AMX tiles (gemm/split.h). Weights are counted in numbers, not bytes.
#pragma once
#include <stdint.h>

namespace fused_rnn::cpu {
namespace {

// ---- which instruction set, how many threads (schedule/select.cpp) --------------------------------------------------

// Multiply-adds below which a call is over before another thread has woken up.
//   python -m benchmarks cpu --only "one step" --threads 2
constexpr int64_t kLeastWorkForThreads = 250'000;

// Least size for split-float tiles: rows, hidden units, and rows over all steps, unless the weights are packed already.
// Must not depend on the number of threads, so that results do not.
//   python -m benchmarks cpu --only "B16 H64" --threads 1; the same with "B16 H128" and "short"
constexpr int64_t kLeastSplitBatch = 16, kLeastSplitUnits = 64, kLeastSplitRows = 256;

// Rows over all steps from which packing the weights pays (Reading, schedule/plan.h): packing reads and writes each
// weight once, evicting large matrices from the cache; without it every row reads all weights, converting those of 16
// bits. kLeastRowsToPackMost is for weights whose rows fill cache lines: of others, every load of a vector reads two.
//   python -m benchmarks cpu --only "one step" --threads 1; add lines of 2 to 16 rows, and of two steps
constexpr int64_t kLeastRowsToPackHalf = 2, kLeastRowsToPackBFloat16 = 4;
constexpr int64_t kManyWeightsToPack = 30'000, kMostWeightsToPackSoon = 600'000;  // of W_hh
constexpr int64_t kLeastRowsToPackFew = 5, kLeastRowsToPackMany = 10, kLeastRowsToPackMost = 20;

// Rows of a step from which panels are packed block by block while they are multiplied, in place of rows of weights that
// do not fill cache lines; of others kLeastRowsToPackFew and kLeastRowsToPackMany. More steps than kMostStepsInBlocks, or
// than one where a packed matrix stays in L2, share what is packed once.
//   python -m benchmarks cells --only "one step" inference --threads 1; add lines of 2 to 16 rows, H500, and of 2 to 4 steps
constexpr int64_t kManyWeightsForBlocks = 100'000, kMostStepsInBlocks = 3;  // of W_hh
constexpr int64_t kLeastRowsForBlocksSplitFew = 2, kLeastRowsForBlocksSplitMany = 4;

// On vectors: below this many rows a thread, split the units, not the batch. Runs of batch rows are independent, but
// each reads all weights; shares of the units have a barrier after every step, which costs as much as reading some
// 20,000 weights. By the number of weights in W_hh: 0, 1 or 4 rows.
//   python -m benchmarks cpu --only "T100 B1 H" --threads 2; the same with "T100 B4 H128"; add lines of B 2 to 7
constexpr int64_t kFewWeightsToShare = 25'000, kManyWeightsToShare = 45'000;
constexpr int64_t kRowsToShareSome = 1, kRowsToShareMany = 4;
// Rows over all steps up to which weights that are not packed yet are shared too: each thread then reads what it packed
// itself, and not what the other core's cache holds.
//   python -m benchmarks cells --only "one step" inference --threads 2 --full
constexpr int64_t kMostRowsToShareUnpacked = 64;
constexpr int64_t kLeastUnitsToShare = 128;  // of a layer
constexpr int64_t kLeastUnitsOfShare = 64;

// On split-float tiles: split the units of wide layers with few rows, or whose weights do not fit L2. A run has at
// least half a tile of rows: fewer take as long.
//   python -m benchmarks cpu --only "B64 H256" --threads 2; the same with "B32 H512", "B16 H128" and "H1024"
constexpr int64_t kLeastRowsOfRun = 8;
constexpr int64_t kWideLayer = 256, kFewRowsOfWide = 16;  // rows a thread
constexpr int64_t kManyWeightsOfWide = 700'000;

// ---- barriers after every step (schedule/team.h) --------------------------------------------------------------------

// Polls before a waiting member takes over another's share: some tens of microseconds.
//   python -m benchmarks cpu --only "B1 H" --threads 2, beside other work
constexpr int64_t kTeamPatience = 2000;

// ---- the forward pass (passes/forward/) -----------------------------------------------------------------------------

// W_ih x is computed ahead of time for about this many rows.
//   python -m benchmarks cpu --only inference "H256" --threads 1; the same with "H128"
constexpr int64_t kAheadRows = 96, kAheadRowsSplit = 256;

// Pack W_ih if 8 * rows >= vocabulary: looking up an unpacked column (strided) costs as much as packing 8 of them.
//   python -m benchmarks features --only ids --threads 1
constexpr int64_t kPackedColumnsPerLookUp = 8;

// Weights up to which W_ih x and W_hh h are accumulated into one sum: those must fit L2.
//   python -m benchmarks cpu --only LSTM "B16 H128" --threads 1; the same with "B64 H256"
constexpr int64_t kMostWeightsToFuse = 350'000;

// Rows of a single step below which W_ih and W_hh are read together, panel by panel. With more, the prefetch of the
// next panel comes too late.
//   python -m benchmarks cpu --only "one step" --threads 1; add lines of 2 to 16 rows
constexpr int64_t kLeastRowsReadApart = 8;

// ---- the backward pass (passes/backward/, passes/weight_grads/) -----------------------------------------------------

// Rows of a round: their gate gradients stay cached until the weight gradients use them.
//   python -m benchmarks cpu --only training H128 --threads 1; the same with H1024
constexpr int64_t kRoundRows = 512, kRoundRowsSplit = 256;

// Rows up to which weight gradients are outer products of unpacked rows.
//   python -m benchmarks cpu --only cell training --threads 1
constexpr int64_t kMostRowsOfOuterProducts = 4;

// Columns of dgates that are copied together as a strip, and rows copied at a time, which stay in L1.
//   python -m benchmarks cpu --only training B64 --threads 1
constexpr int64_t kStripColumns = 48, kStripColumnsSplit = 96;
constexpr int64_t kStripRowsAtOnce = 128;

// ---- products on vectors (gemm/product.h) ---------------------------------------------------------------------------

//   python -m benchmarks cpu --only "float64" --threads 1; the same with "T512 B8 H64" and "T1000 B1 H32"
constexpr int kMostVectors = 4;        // of a panel, but for cells of more gates: enough to fill the accumulators
constexpr int kMostRows = 8;           // of a register tile: more row pointers do not fit the registers
constexpr int64_t kLinesAtOnce = 128;  // K block that keeps one panel, 32 KB of the widest vectors, in L1
constexpr int64_t kRowsAtOnce = 96;    // rows whose sums are kept from one K block to the next

// Rows of an unpacked matrix that are read side by side, if it is of at most so many bytes, and is read for one row of
// A or has rows of whole pages: those share a set of L1, of 8 or 12 lines, so that 16 of them evict each other's lines.
// From beyond the third-level cache 16 arrive faster.
//   python -m benchmarks cells --only "one step" inference H1024 --threads 1
constexpr int kFewSideBySide = 8;
constexpr int64_t kMostBytesOfFew = 8 << 20, kPageBytes = 4096;

// ---- products on the tiles of AMX (gemm/amx.h) ----------------------------------------------------------------------

//   python -m benchmarks cpu --only B64 --threads 1; the same with "wide" and "B32 H512"
constexpr int64_t kSplitDepthAtOnce = 512;    // K block that keeps one panel of split floats in L2; others: any depth
constexpr int64_t kTilesAtOnce = 8;           // tiles of rows whose sums are kept from one K block to the next
constexpr int64_t kGatheredDepth = 256;       // K block for gathering rows without a constant stride
constexpr int64_t kFetchFromBytes = 2 << 20;  // prefetch matrices larger than L2
constexpr int64_t kMostRowBytes = 1 << 20;    // larger A does not stay in L2 from one panel to the next: then
constexpr int64_t kPanelsAtOnce = 4;          // multiply a K block by this many panels before the next block

// Rows of bytes from which tiles multiply them, and not avx512_vnni: an LSTM of 2 to 6 rows is 1.1 to 1.4 times as fast on
// vectors, a GRU of 3 to 6 as much slower. After tiles, vectors run at half rate for 200 ns, and the cell is on vectors.
//   python -m benchmarks quantized --only B16 --threads 1; add lines of 2 to 16 rows
constexpr int64_t kLeastRowsForByteTiles = 8;

}  // namespace
}  // namespace fused_rnn::cpu
