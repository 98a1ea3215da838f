// What has been measured on this machine's GPUs: Python reads it from files and sets it here.
#include <cmath>
#include <map>
#include <mutex>

#include "core/export.h"
#include "core/fail.h"
#include "cuda/plan/plan.h"

namespace fused_rnn::cuda {
namespace {

std::mutex mutex;

std::map<int32_t, std::shared_ptr<const MeasuredTable>>& tables() {
  static std::map<int32_t, std::shared_ptr<const MeasuredTable>> all;
  return all;
}

// How many times one size doubles into the other. In float: that of double needs a newer glibc.
double doublings(int64_t a, int64_t b) { return std::abs(std::log2(float(a) / float(b))); }

}  // namespace

const Measured* find_measured(const MeasuredTable& table, const Task& task) {
  const Measured* nearest = nullptr;
  double least = 0;
  for (const Measured& each : table) {
    if (each.cell != task.cell || each.dtype != task.dtype || each.direction != task.direction) continue;
    if (each.problems != task.problems || each.tf32 != task.tf32) continue;
    const double by_batch = doublings(each.batch, task.batch), by_hidden = doublings(each.hidden, task.hidden);
    if (!(by_batch <= 1 && by_hidden <= 1)) continue;
    if (nearest && by_batch + by_hidden >= least) continue;
    nearest = &each;
    least = by_batch + by_hidden;
  }
  return nearest;
}

std::shared_ptr<const MeasuredTable> measured_on(int32_t device) {
  static const auto none = std::make_shared<const MeasuredTable>();
  const std::lock_guard lock(mutex);
  const auto found = tables().find(device);
  return found == tables().end() ? none : found->second;
}

void set_measured(int32_t device, MeasuredTable table) {
  auto shared = std::make_shared<const MeasuredTable>(std::move(table));
  const std::lock_guard lock(mutex);
  tables()[device] = std::move(shared);
}

}  // namespace fused_rnn::cuda

using namespace fused_rnn;
using namespace fused_rnn::cuda;

// Sets a GPU's table: `count` entries of eight numbers, the fields of Measured in order. An entry that makes no sense
// is an error, given in `reason`.
FUSED_RNN_EXPORT int64_t fused_rnn_set_measured(int64_t device, const int64_t* numbers, int64_t count, char* reason,
                                                int64_t reason_size) {
  return !succeeds(reason, reason_size, [&] {
    MeasuredTable table;
    for (const int64_t* n = numbers; n < numbers + 8 * count; n += 8) {
      const bool known = n[7] == 0 || (n[7] >= kFirstOfBlocks && n[7] < kFirstOfBlocks + 4);
      FUSED_RNN_CHECK(known && n[3] > 0 && n[4] > 0 && n[5] > 0, "fused_rnn: a measured entry has engine ", n[7],
                      " and sizes ", n[3], ", ", n[4], " and ", n[5]);
      table.push_back({n[0], static_cast<Dtype>(n[1]), n[2] ? Direction::kBackward : Direction::kForward, n[3], n[4],
                       n[5], n[6] != 0, static_cast<int>(n[7])});
    }
    set_measured(static_cast<int32_t>(device), std::move(table));
  });
}
