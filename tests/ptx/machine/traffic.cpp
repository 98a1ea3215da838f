#include "traffic.h"

#include <algorithm>

#include "access.h"

namespace ptx {
namespace {

constexpr uint32_t kBanks = 32, kSectorBytes = 32;

// 32 banks of 4 bytes serve 32, 16 or 8 lanes at a time, as wide as their accesses are; equal words are served at once.
void note_banks(Warp& w, const Instruction& i, uint32_t mask, uint32_t bytes, Count& count) {
  const int lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int first = 0; first < 32; first += lanes) {
    std::vector<uint64_t> words[kBanks];
    size_t most = 0;
    for (int lane = first; lane < first + lanes; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const uint64_t from = address_of(w, i, lane, 0, 0) / 4;
      for (uint64_t word = from; word < from + std::max(1u, bytes / 4); ++word) {
        auto& bank = words[word % kBanks];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        most = std::max(most, bank.size());
      }
    }
    count.passes += most;
    count.least_passes += most > 0;
  }
}

void note_sectors(Warp& w, const Instruction& i, uint32_t mask, uint32_t bytes, Count& count) {
  std::vector<uint64_t> sectors;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint64_t sector = address_of(w, i, __builtin_ctz(rest), 0, 0) / kSectorBytes;
    if (std::find(sectors.begin(), sectors.end(), sector) == sectors.end()) sectors.push_back(sector);
  }
  count.passes += sectors.size();
  count.least_passes += (static_cast<uint32_t>(__builtin_popcount(mask)) * bytes + kSectorBytes - 1) / kSectorBytes;
}

}  // namespace

void note_traffic(Warp& w, const Instruction& i, uint32_t mask, bool shared, uint32_t bytes) {
  Kernel& kernel = w.block->grid->kernel;
  Count& count = kernel.counts[static_cast<size_t>(&i - kernel.code.data())];
  shared ? note_banks(w, i, mask, bytes, count) : note_sectors(w, i, mask, bytes, count);
}

}  // namespace ptx
