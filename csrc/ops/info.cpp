// What Python asks about the library, through ctypes.
#include <cstring>
#include <string>

#include "core/dispatch.h"
#include "core/engine_names.h"
#include "core/export.h"
#include "core/registry.h"
#include "ops/memory.h"
#include "ops/stack_code.h"

#ifndef FUSED_RNN_VERSION
#error "the build must define FUSED_RNN_VERSION as fused_rnn/_version.py has it"
#endif
#ifndef FUSED_RNN_CUDA_ARCHS
#define FUSED_RNN_CUDA_ARCHS ""
#endif

using namespace fused_rnn;

// "0.1.0": of the Python package that this library belongs to, and of no other.
FUSED_RNN_EXPORT const char* fused_rnn_version() { return FUSED_RNN_VERSION; }

// "75 90a": the GPU architectures compiled in; empty for a CPU-only build.
FUSED_RNN_EXPORT const char* fused_rnn_cuda_archs() { return FUSED_RNN_CUDA_ARCHS; }

// "stepwise persistent ...": every engine, compiled in or not.
FUSED_RNN_EXPORT const char* fused_rnn_engines() {
  static const std::string names = [] {
    std::string all;
    for (const char* name : kEngines) all += std::string(name) + " ";
    return all;
  }();
  return names.c_str();
}

// How many of them, the first ones, are of CUDA.
FUSED_RNN_EXPORT int64_t fused_rnn_cuda_engine_count() { return kCudaEngines; }

// The first bits of a stack code's fields, in the order of StackCode.
FUSED_RNN_EXPORT void fused_rnn_stack_code(int64_t* first_bits) {
  const int64_t bits[] = {StackCode::kLayout, StackCode::kBias, StackCode::kBidirectional, StackCode::kCell,
                          StackCode::kLayers};
  std::memcpy(first_bits, bits, sizeof bits);
}

// Number of the library's own cells; their ids are 0 .. count - 1.
FUSED_RNN_EXPORT int64_t fused_rnn_cell_count() {
  int64_t count = 0;
#define FUSED_RNN_COUNT(id, Cell) ++count;
  FUSED_RNN_CELLS(FUSED_RNN_COUNT)
#undef FUSED_RNN_COUNT
  return count;
}

// Fills `traits` with the fields of CellTraits. `cell` must be valid.
FUSED_RNN_EXPORT void fused_rnn_cell_traits(int64_t cell, int64_t* traits) {
  const CellTraits of_cell = traits_of_any(cell);
  std::memcpy(traits, &of_cell, sizeof of_cell);
}

// For tests: whether results and scratch memory are filled with NaN when allocated.
FUSED_RNN_EXPORT void fused_rnn_fill_memory(int64_t fill) { fill_memory(fill != 0); }
