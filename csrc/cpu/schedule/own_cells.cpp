#include "cpu/schedule/own_cells.h"

#include <atomic>
#include <string>

#include "core/export.h"
#include "core/fail.h"
#include "core/registry.h"
#include "cpu/schedule/plug_in.h"

namespace fused_rnn::cpu {

static_assert(static_cast<int>(Isa::kAmx) < OwnCell::kIsas);

namespace {

std::atomic<Loader> loader = nullptr;

}  // namespace

const Kernels& kernels_of_own(int64_t cell, Isa isa, Dtype dtype) {
  const auto& kernels = own_cell(cell).kernels[static_cast<int>(isa)][static_cast<int>(dtype)];
  return loaded(kernels, loader, cell, dtype, isa_name(isa));
}

namespace {

int64_t add(const PlugIn& plug_in) {
  FUSED_RNN_CHECK(plug_in.layout == kPlugInLayout, kWrongLayout);
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

// `loader` brings the kernels of declared cells when they are needed.
FUSED_RNN_EXPORT void fused_rnn_set_loader(Loader loader) { cpu::loader.store(loader, std::memory_order_release); }

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
