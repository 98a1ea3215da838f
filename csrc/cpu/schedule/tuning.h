// Every threshold of the CPU engine that was measured on a machine. What follows from the instruction set or from how
// caches work stands where it is used.
//
// All of them were measured in November 2026 on one Intel Xeon with AVX-512 and AMX, 2 cores, 2 MB of second-level
// cache each; benchmarks/results/NOTES.md has the figures. No other processor has values of its own yet. The command
// beside a threshold measures the lines it decides; change it, build, run the command again and compare:
//
//   python -m benchmarks cpu --only WORD... --threads N     lines whose names hold every word; see benchmarks/suites.py
//   python -m benchmarks features --only WORD...            likewise; see benchmarks/features.py
//
// "Add lines" where the suites have none on both sides of a threshold: shapes of your own in benchmarks/suites.py.
//
// "Split": of float32 as three bfloat16, on the tiles of AMX (gemm/split.h). A weight is one number, of any size.
#pragma once
#include <stdint.h>

namespace fused_rnn::cpu {
namespace {

// ---- which instruction set, how many threads (schedule/select.cpp) --------------------------------------------------

// Multiply-adds of a call below which it is over before another thread has woken up.
//   python -m benchmarks cpu --only "one step" --threads 2
constexpr int64_t kLeastWorkForThreads = 250'000;

// Least size for split-float tiles: rows, hidden units, and rows over all steps, unless the weights are packed already.
// They must not depend on the number of threads, as no bit of a result may.
//   python -m benchmarks cpu --only "B16 H64" --threads 1; the same with "B16 H128" and "short"
constexpr int64_t kLeastSplitBatch = 16, kLeastSplitUnits = 64, kLeastSplitRows = 256;

// Rows over all steps from which packing the weights pays: it reads and writes each weight once, and large matrices
// leave the cache meanwhile; without it every row reads all of them, and converts those of 16 bits.
//   python -m benchmarks cpu --only "one step" --threads 1; add lines of 2 to 16 rows, and of two steps
constexpr int64_t kLeastRowsToPackHalf = 2, kLeastRowsToPackBFloat16 = 4;
constexpr int64_t kManyWeightsToPack = 30'000;  // of W_hh
constexpr int64_t kLeastRowsToPackFew = 5, kLeastRowsToPackMany = 10;

// On vectors: below this many rows a thread, split the units, not the batch. Runs of batch rows never wait for each
// other, but each reads all weights; shares of the units meet after every step, which takes as long as reading some
// 20,000 weights. By the number of weights in W_hh: 0, 1 or 4 rows.
//   python -m benchmarks cpu --only "T100 B1 H" --threads 2; the same with "T100 B4 H128"; add lines of B 2 to 7
constexpr int64_t kFewWeightsToShare = 25'000, kManyWeightsToShare = 45'000;
constexpr int64_t kRowsToShareSome = 1, kRowsToShareMany = 4;
constexpr int64_t kLeastUnitsToShare = 128;  // of a layer
constexpr int64_t kLeastUnitsOfShare = 64;

// On split-float tiles: split the units of wide layers whose rows are few, or whose weights do not fit L2. A run has no
// fewer rows than half a tile, as those take as long.
//   python -m benchmarks cpu --only "B64 H256" --threads 2; the same with "B32 H512", "B16 H128" and "H1024"
constexpr int64_t kLeastRowsOfRun = 8;
constexpr int64_t kWideLayer = 256, kFewRowsOfWide = 16;  // rows a thread
constexpr int64_t kManyWeightsOfWide = 700'000;

// ---- threads that meet after every step (schedule/team.h) -----------------------------------------------------------

// How often a member looks whether another is done before it takes its share: some tens of microseconds.
//   python -m benchmarks cpu --only "B1 H" --threads 2, beside other work
constexpr int64_t kTeamPatience = 2000;

// ---- the forward pass (passes/forward/) -----------------------------------------------------------------------------

// W_ih x is computed ahead for about this many rows at once.
//   python -m benchmarks cpu --only inference "H256" --threads 1; the same with "H128"
constexpr int64_t kAheadRows = 96, kAheadRowsSplit = 256;

// Pack W_ih if 8 * rows >= vocabulary: looking up a column as it lies costs as much as packing 8 of them.
//   python -m benchmarks features --only ids --threads 1
constexpr int64_t kPackedColumnsPerLookUp = 8;

// Weights up to which W_ih x and W_hh h are accumulated into one sum: those must fit L2.
//   python -m benchmarks cpu --only LSTM "B16 H128" --threads 1; the same with "B64 H256"
constexpr int64_t kMostWeightsToFuse = 350'000;

// Rows of a single step below which W_ih and W_hh are read together, panel by panel. From here on the next panel is not
// fetched in time.
//   python -m benchmarks cpu --only "one step" --threads 1; add lines of 2 to 16 rows
constexpr int64_t kLeastRowsReadApart = 8;

// ---- the backward pass (passes/backward/, passes/weight_grads/) -----------------------------------------------------

// Rows of a round: their gradients of the gates stay cached until they are used for the weights.
//   python -m benchmarks cpu --only training H128 --threads 1; the same with H1024
constexpr int64_t kRoundRows = 512, kRoundRowsSplit = 256;

// Rows up to which weight gradients are written as outer products, without panels.
//   python -m benchmarks cpu --only cell training --threads 1
constexpr int64_t kMostRowsOfOuterProducts = 4;

// Columns of dgates that are copied together as a strip, and rows of them at a time, which stay in L1.
//   python -m benchmarks cpu --only training B64 --threads 1
constexpr int64_t kStripColumns = 48, kStripColumnsSplit = 96;
constexpr int64_t kStripRowsAtOnce = 128;

// ---- products on vectors (gemm/product.h) ---------------------------------------------------------------------------

//   python -m benchmarks cpu --only "float64" --threads 1; the same with "T512 B8 H64" and "T1000 B1 H32"
constexpr int kMostVectors = 4;        // of a panel: wide enough for all sums that registers hold
constexpr int kMostRows = 8;           // of a register tile: more pointers than this do not fit into registers
constexpr int64_t kLinesAtOnce = 128;  // K block that keeps one panel, 32 KB of the widest vectors, in L1
constexpr int64_t kRowsAtOnce = 96;    // rows whose sums are kept from one K block to the next

// ---- products on the tiles of AMX (gemm/amx.h) ----------------------------------------------------------------------

//   python -m benchmarks cpu --only B64 --threads 1; the same with "wide" and "B32 H512"
constexpr int64_t kSplitDepthAtOnce = 512;    // K block that keeps one panel of split floats in L2; others: any depth
constexpr int64_t kTilesAtOnce = 8;           // tiles of rows whose sums are kept from one K block to the next
constexpr int64_t kGatheredDepth = 256;       // of rows that are not evenly spaced, copied together
constexpr int64_t kFetchFromBytes = 2 << 20;  // matrices of more bytes than L2 are fetched ahead of time
constexpr int64_t kMostRowBytes = 1 << 20;    // rows of more bytes do not stay in L2 from one panel to the next: then
constexpr int64_t kPanelsAtOnce = 4;          // take each K block for this many panels before the next block

}  // namespace
}  // namespace fused_rnn::cpu
