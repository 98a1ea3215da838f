#include "cuda/stepwise/own_cells.h"

#include "core/export.h"
#include "cuda/stepwise/plug_in.h"

namespace fused_rnn::cuda {
namespace {

std::atomic<Loader> loader = nullptr;

int64_t add(const PlugIn& plug_in) {
  FUSED_RNN_CHECK(plug_in.layout == kPlugInLayout, kWrongLayout);
  OwnCell& cell = add_own_cell(plug_in.id, plug_in.traits);
  cell.launches[static_cast<int>(plug_in.dtype)].store(plug_in.launches, std::memory_order_release);
  return plug_in.id;
}

}  // namespace

const CellLaunches& launches_of_own(int64_t cell, Dtype dtype) {
  return loaded(own_cell(cell).launches[static_cast<int>(dtype)], loader, cell, dtype, "CUDA");
}

}  // namespace fused_rnn::cuda

using namespace fused_rnn;

// Registers what a plug-in's fused_rnn_cuda_plug_in() returned. Returns the cell's id, or 0 and the reason in `error`.
FUSED_RNN_EXPORT int64_t fused_rnn_add_cuda_cell(const void* plug_in, char* error, int64_t error_size) {
  int64_t id = 0;
  succeeds(error, error_size, [&] { id = cuda::add(*static_cast<const cuda::PlugIn*>(plug_in)); });
  return id;
}

// `loader` brings the kernels of declared cells when they are needed.
FUSED_RNN_EXPORT void fused_rnn_set_cuda_loader(Loader loader) {
  cuda::loader.store(loader, std::memory_order_release);
}
