#include "core/registry.h"

#include <cstring>
#include <iterator>
#include <mutex>

#include "core/dispatch.h"
#include "core/export.h"
#include "core/fail.h"

namespace fused_rnn {
namespace {

// Open addressing. Cells are never removed, so that readers need no lock.
constexpr size_t kPlaces = 4096, kMostCells = kPlaces / 2;
std::atomic<OwnCell*> own_cells[kPlaces];
size_t count = 0;
std::mutex adding;

// Where this cell is, or would be.
std::atomic<OwnCell*>& place_of(int64_t id) {
  size_t place = static_cast<uint64_t>(id) % kPlaces;
  for (OwnCell* found; (found = own_cells[place].load(std::memory_order_acquire)) && found->id != id;)
    place = (place + 1) % kPlaces;
  return own_cells[place];
}

constexpr int64_t kLibrarysCells[] = {
#define FUSED_RNN_ID(id, Cell) id,
    FUSED_RNN_CELLS(FUSED_RNN_ID)
#undef FUSED_RNN_ID
};

struct Traits {
  CellTraits of[std::size(kLibrarysCells)];
  Traits() {
    for (const int64_t id : kLibrarysCells) of[id] = traits_of(id);
  }
};

}  // namespace

const CellTraits& traits_of_any(int64_t cell) {
  static const Traits traits;
  if (0 <= cell && cell < static_cast<int64_t>(std::size(kLibrarysCells))) return traits.of[cell];
  if (!is_own(cell)) unknown_value("cell", cell);
  return own_cell(cell).traits;
}

OwnCell& own_cell(int64_t id) {
  OwnCell* const found = place_of(id).load(std::memory_order_acquire);
  FUSED_RNN_CHECK(found, "fused_rnn: no cell with the id ", id,
                  " is loaded: define it (fused_rnn.cell) before you load or run this graph");
  return *found;
}

OwnCell& add_own_cell(int64_t id, const CellTraits& traits) {
  FUSED_RNN_CHECK(is_own(id), "fused_rnn: a plug-in's cell needs an id of at least ", kLeastOwnId, ", got ", id);
  const std::lock_guard lock(adding);
  std::atomic<OwnCell*>& place = place_of(id);
  if (OwnCell* const found = place.load(std::memory_order_acquire)) {
    FUSED_RNN_CHECK(std::memcmp(&found->traits, &traits, sizeof traits) == 0,
                    "fused_rnn: there is another cell with the id ", id);
    return *found;
  }
  FUSED_RNN_CHECK(count < kMostCells, "fused_rnn: a process has at most ", kMostCells, " cells of its own");
  OwnCell* const added = new OwnCell{id, traits};
  place.store(added, std::memory_order_release);
  ++count;
  return *added;
}

}  // namespace fused_rnn

using namespace fused_rnn;

// Makes a cell known, whose kernels plug-ins bring later. Zero on failure, and then the reason in `error`.
FUSED_RNN_EXPORT int64_t fused_rnn_declare_cell(int64_t id, const int64_t* traits, char* error, int64_t error_size) {
  CellTraits of_cell;
  std::memcpy(&of_cell, traits, sizeof of_cell);
  return succeeds(error, error_size, [&] { add_own_cell(id, of_cell); });
}
