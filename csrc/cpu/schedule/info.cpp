// Plans for Python, through ctypes.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/engine.h"
#include "core/export.h"
#include "core/registry.h"
#include "cpu/schedule/select.h"

using namespace fused_rnn;
using namespace fused_rnn::cpu;

namespace {

Layer layer_of(int64_t cell, int64_t dtype, int64_t directions, int64_t rows, int64_t batch, int64_t input_size,
               int64_t hidden, int64_t output_size) {
  Layer layer = {};
  layer.cell = cell;
  layer.dtype = static_cast<Dtype>(dtype);
  layer.members = 1;
  layer.directions = directions;
  layer.batch = batch;
  layer.rows = rows;
  layer.input_size = input_size;
  layer.hidden = hidden;
  layer.output_size = output_size;
  return layer;
}

}  // namespace

// The CPU engine's plan for a layer of this size on this many threads; `packed`: its weights are packed already, in this
// WeightFormat. `plan` gets Plan's threads, row_chunks, unit_chunks and pack. Returns the instruction set's name, or null
// and the reason in `error`.
FUSED_RNN_EXPORT const char* fused_rnn_cpu_plan(int64_t cell, int64_t dtype, int64_t directions, int64_t rows,
                                                int64_t batch, int64_t input_size, int64_t hidden, int64_t output_size,
                                                int64_t packed, int64_t format, int64_t layer_norm, int64_t threads,
                                                int64_t* plan, char* error, int64_t error_size) {
  const char* isa = nullptr;
  succeeds(error, error_size, [&] {
    Layer layer = layer_of(cell, dtype, directions, rows, batch, input_size, hidden, output_size);
    layer.packed = packed ? &layer : nullptr;
    if (layer_norm) layer.weights[0].gain_ih = &layer;
    if (layer_norm && traits_of_any(cell).output_gate) layer.weights[0].gain_c = &layer;
    layer.format = static_cast<WeightFormat>(format);
    const int64_t gates = traits_of_any(cell).gates;
    const std::span<const Isa> isas = isas_for(layer.dtype, layer.format, gates);
    const Plan found = select(isas, load_of(layer), threads, current_thresholds());
    plan[0] = found.threads;
    plan[1] = found.row_chunks;
    plan[2] = found.unit_chunks;
    plan[3] = static_cast<int64_t>(found.weights);
    isa = isa_name(found.isa);
  });
  return isa;
}

// After how many steps of such a layer states are kept where `checkpoint` were asked for; 0: never, or -1 and the reason.
FUSED_RNN_EXPORT int64_t fused_rnn_cpu_segment(int64_t cell, int64_t dtype, int64_t directions, int64_t rows,
                                               int64_t batch, int64_t input_size, int64_t hidden, int64_t output_size,
                                               int64_t steps, int64_t checkpoint, char* error, int64_t error_size) {
  int64_t segment = -1;
  succeeds(error, error_size, [&] {
    Layer layer = layer_of(cell, dtype, directions, rows, batch, input_size, hidden, output_size);
    layer.steps = steps;
    segment = engine_for(torch::headeronly::DeviceType::CPU).segment_for(layer, checkpoint);
  });
  return segment;
}

// Fills `numbers` with Thresholds' fields as they are now; as shipped, if `shipped`. Returns how many there are.
FUSED_RNN_EXPORT int64_t fused_rnn_cpu_thresholds(int64_t shipped, int64_t* numbers) {
  const Thresholds found = shipped ? Thresholds{} : current_thresholds();
  std::memcpy(numbers, &found, sizeof found);
  return kThresholds;
}

FUSED_RNN_EXPORT void fused_rnn_set_cpu_thresholds(const int64_t* numbers) {
  std::array<int64_t, kThresholds> values;
  std::copy_n(numbers, kThresholds, values.begin());
  set_thresholds(std::bit_cast<Thresholds>(values));
}
