// The cells that there are at run time: the library's own (cells/cells.h), and those that plug-ins bring.
#pragma once
#include <atomic>

#include "core/cell_traits.h"

namespace fused_rnn {

namespace cpu {
struct Kernels;
}
namespace cuda {
struct CellLaunches;
}

// Ids of cells that plug-ins bring: a hash of what they compute.
constexpr int64_t kLeastOwnId = int64_t{1} << 32;
inline bool is_own(int64_t cell) { return cell >= kLeastOwnId; }

// Such a cell. Lives as long as the process.
struct OwnCell {
  static constexpr int kIsas = 8, kDtypes = 4;

  int64_t id;
  CellTraits traits;
  std::atomic<const cpu::Kernels*> kernels[kIsas][kDtypes] = {};  // null: not compiled
  std::atomic<const cuda::CellLaunches*> launches[kDtypes] = {};  // likewise
};

// Throw if there is no such cell.
const CellTraits& traits_of_any(int64_t cell);
OwnCell& own_cell(int64_t id);

// Throws if there is one of this id with other traits. May be called by several threads at once.
OwnCell& add_own_cell(int64_t id, const CellTraits& traits);

}  // namespace fused_rnn
