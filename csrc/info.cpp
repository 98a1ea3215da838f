// What Python asks about the library itself, through ctypes: nothing here touches a tensor.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>

#include "cpu/select.h"
#include "dispatch.h"
#include "memory.h"

#ifndef FUSED_RNN_CUDA_ARCHS
#define FUSED_RNN_CUDA_ARCHS ""
#endif

#define FUSED_RNN_EXPORT extern "C" __attribute__((visibility("default")))

using namespace fused_rnn;

// "75 90a": the GPU architectures compiled in; empty for a CPU-only build.
FUSED_RNN_EXPORT const char* fused_rnn_cuda_archs() { return FUSED_RNN_CUDA_ARCHS; }

// Number of cells; their traits are those of ids 0 .. count - 1.
FUSED_RNN_EXPORT int64_t fused_rnn_cell_count() {
  int64_t count = 0;
#define FUSED_RNN_COUNT(id, Cell) ++count;
  FUSED_RNN_CELLS(FUSED_RNN_COUNT)
#undef FUSED_RNN_COUNT
  return count;
}

// traits: what CellTraits has, in its order. `cell` must be one.
FUSED_RNN_EXPORT void fused_rnn_cell_traits(int64_t cell, int64_t* traits) {
  const CellTraits of_cell = traits_of(cell);
  std::memcpy(traits, &of_cell, sizeof of_cell);
}

// The plan the CPU engine follows for a layer of this size, whose weights may be packed already, on so many threads:
// `plan` gets Plan's threads, row_chunks, unit_chunks and pack. Returns the instruction set's name; null and the reason
// in `error` when there is none.
FUSED_RNN_EXPORT const char* fused_rnn_cpu_plan(int64_t cell, int64_t dtype, int64_t directions, int64_t rows,
                                                int64_t batch, int64_t input_size, int64_t hidden, int64_t output_size,
                                                int64_t packed, int64_t threads, int64_t* plan, char* error,
                                                int64_t error_size) {
  try {
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
    layer.packed = packed ? &layer : nullptr;
    const Plan found = select(isas_for(layer.dtype), load_of(layer), threads);
    plan[0] = found.threads;
    plan[1] = found.row_chunks;
    plan[2] = found.unit_chunks;
    plan[3] = found.pack;
    return isa_name(found.isa);
  } catch (const std::exception& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return nullptr;
  }
}

// For tests: results and scratch memory come filled with NaN from now on, or no longer.
FUSED_RNN_EXPORT void fused_rnn_fill_memory(int64_t fill) { fill_memory(fill != 0); }
