// The CPU kernels for weights of 8 bits: compiled once for each value of FUSED_RNN_ISA, as kernels.cpp is, and under its
// rule: nothing here may call an inline function or template of external linkage.
#include "core/dispatch.h"
#include "cpu/gemm/int8.h"
#include "cpu/passes/forward.h"
#include "cpu/schedule/kernels.h"

namespace fused_rnn::cpu {
namespace {

template <class Cell, class W>
struct Passes {
  using F = ForwardPass<Cell, FloatBesides<W>>;
  static constexpr Pass<Forward> kForward = {
      &F::bytes, nullptr, {{&F::count_runs_to_prepare, &F::prepare_run}}, {{&F::count_loops, &in_tiles<&F::loop>}}, {}};
  static constexpr Packing kPacking = {&F::packed_bytes, {&F::count_packs, &F::pack_weights}};
};

template <class Select>
auto dispatch(int64_t cell, WeightFormat format, Select select) {
  return dispatch_cell(cell, [&](auto c) {
    using Cell = typename decltype(c)::type;
#ifdef FUSED_RNN_AMX_INT8  // a build for one format
    (void)format;
    return select(Passes<Cell, Int8>{});
#else
    return format == WeightFormat::kInt8 ? select(Passes<Cell, Int8>{}) : select(Passes<Cell, Int8Weight>{});
#endif
  });
}

const Pass<Forward>& forward(int64_t cell, WeightFormat format) {
  return *dispatch(cell, format, [](auto passes) { return &decltype(passes)::kForward; });
}

const Packing& packing(int64_t cell, WeightFormat format) {
  return *dispatch(cell, format, [](auto passes) { return &decltype(passes)::kPacking; });
}

}  // namespace

#define FUSED_RNN_JOIN(a, b) a##b
#define FUSED_RNN_TABLE(isa) FUSED_RNN_JOIN(kInt8Kernels, isa)
extern const Int8Kernels FUSED_RNN_TABLE(FUSED_RNN_ISA) = {&forward, &packing};

}  // namespace fused_rnn::cpu
