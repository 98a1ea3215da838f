#include "cpu/schedule/own_cells.h"

#include <atomic>
#include <cstring>
#include <string>

#include "core/export.h"
#include "core/fail.h"
#include "core/registry.h"
#include "cpu/schedule/plug_in.h"

namespace fused_rnn::cpu {

static_assert(static_cast<int>(Isa::kAmx) < OwnCell::kIsas);

namespace {

// Loads the kernels for a dtype, which may compile them; 0 on failure, and then the reason in `error`.
using Loader = int64_t (*)(int64_t cell, int64_t dtype, char* error, int64_t error_size);
std::atomic<Loader> loader = nullptr;

}  // namespace

const Kernels& kernels_of_own(int64_t cell, Isa isa, Dtype dtype) {
  constexpr const char* kNames[OwnCell::kDtypes] = {"float32", "float64", "bfloat16", "float16"};
  const int place = static_cast<int>(dtype);
  const std::atomic<const Kernels*>& kernels = own_cell(cell).kernels[static_cast<int>(isa)][place];
  const Kernels* found = kernels.load(std::memory_order_acquire);
  if (found) [[likely]]
    return *found;
  if (const Loader load = loader.load(std::memory_order_acquire)) {
    char reason[8192] = "";
    FUSED_RNN_CHECK(load(cell, place, reason, sizeof reason), reason);
    found = kernels.load(std::memory_order_acquire);
  }
  FUSED_RNN_CHECK(found, "fused_rnn: the cell with the id ", cell, " was not compiled for ", kNames[place], " on ",
                  isa_name(isa));
  return *found;
}

namespace {

int64_t add(const PlugIn& plug_in) {
  FUSED_RNN_CHECK(plug_in.layout == kPlugInLayout,
                  "fused_rnn: this plug-in was compiled from other sources than the library: build the library again");
  OwnCell& cell = add_own_cell(plug_in.id, plug_in.traits);
  for (int64_t i = 0; i < plug_in.count; ++i) {
    const PlugInKernels& build = plug_in.kernels[i];
    for (int dtype = 0; dtype < OwnCell::kDtypes; ++dtype)
      if (build.dtypes >> dtype & 1)
        cell.kernels[static_cast<int>(build.isa)][dtype].store(build.kernels, std::memory_order_release);
  }
  return plug_in.id;
}

}  // namespace
}  // namespace fused_rnn::cpu

using namespace fused_rnn;

// Registers what a plug-in's fused_rnn_plug_in() returned. Returns the cell's id, or 0 and the reason in `error`.
FUSED_RNN_EXPORT int64_t fused_rnn_add_cell(const void* plug_in, char* error, int64_t error_size) {
  int64_t id = 0;
  succeeds(error, error_size, [&] { id = cpu::add(*static_cast<const cpu::PlugIn*>(plug_in)); });
  return id;
}

// Makes a cell known, whose kernels `loader` brings when they are needed. Zero on failure, and then the reason in `error`.
FUSED_RNN_EXPORT int64_t fused_rnn_declare_cell(int64_t id, const int64_t* traits, char* error, int64_t error_size) {
  CellTraits of_cell;
  std::memcpy(&of_cell, traits, sizeof of_cell);
  return succeeds(error, error_size, [&] { add_own_cell(id, of_cell); });
}
FUSED_RNN_EXPORT void fused_rnn_set_loader(cpu::Loader loader) { cpu::loader.store(loader, std::memory_order_release); }

// The instruction sets, best last, for layers of this dtype of cells with so many gates: "avx512 amx ". Null on failure,
// and then the reason in `error`.
FUSED_RNN_EXPORT const char* fused_rnn_isas(int64_t dtype, int64_t gates, char* error, int64_t error_size) {
  static thread_local std::string names;
  const bool found = succeeds(error, error_size, [&] {
    names.clear();
    for (const cpu::Isa isa : cpu::isas_for(static_cast<Dtype>(dtype), WeightFormat::kOwn, gates))
      names.append(cpu::isa_name(isa)).append(" ");
  });
  return found ? names.c_str() : nullptr;
}
