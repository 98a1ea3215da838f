// All CPU kernels for one instruction set: the build compiles this file once for each value of FUSED_RNN_ISA.
//
// Nothing in or included from this file may call an inline function or template of external linkage (std:: included):
// the linker keeps one copy of those, perhaps one compiled for a newer processor.
#include "cpu/schedule/kernels.h"
#include "core/dispatch.h"
#ifdef FUSED_RNN_OWN_CELL
#include "cpu/simd/more_functions.h"
#endif
#include "cpu/passes/backward.h"
#include "cpu/passes/forward.h"
#include "cpu/passes/input_grads.h"
#include "cpu/passes/weight_grads.h"

namespace fused_rnn::cpu {
namespace {

template <class Cell, class S>
struct Passes {
  static_assert(Cell::kGates <= kMostGates && Cell::kStates <= kMostStates, "a cell has too many gates or states");
  using F = ForwardPass<Cell, S>;
  using Frame = BackwardFrame<S>;
  using B = BackwardPass<Cell, S>;
  using I = InputGradsPass<S>;
  using W = WeightGradsPass<S>;
  static constexpr Pass<Forward> kForward = {
      &F::bytes,
      nullptr,
      {{&F::count_packs, &F::pack_weights}, {&F::count_runs_to_prepare, &F::prepare_run}},
      {{&F::count_loops, &in_tiles<&F::loop>}},
      {}};
  static constexpr Packing kPacking = {&F::packed_bytes, {&F::count_packs, &F::pack_weights}};
  static constexpr Pass<Backward> kBackward = {&W::bytes,
                                               &steps_of_round,
                                               {{&Frame::count_packs, &Frame::prepare}},
                                               {{&B::count_loops, &in_tiles<&B::loop>},
                                                {&I::count, &in_tiles<&I::run>},
                                                {&I::count_reverse, &in_tiles<&I::run_reverse>},
                                                {&W::count, &W::pack_operands},
                                                {&W::count, &in_tiles<&W::weight_grads>}},
                                               {{&Frame::count_ends, &Frame::finish},
                                                {&W::count_token_grads, &W::store_token_grads},
                                                {&W::count_stores, &W::store_sums},
                                                {&W::count_problems, &W::store_biases},
                                                {&I::count_stores, &I::store_sums}}};
};

// dispatch_dtype for a build for some dtypes: bit n of `dtypes` stands for the Dtype of number n.
template <int dtypes, class Storage, class... Others, class F>
auto dispatch_some(int n, F f) {
  if constexpr (dtypes % 2 == 0) {
    return dispatch_some<dtypes / 2, Others...>(n - 1, f);
  } else {
    if constexpr (dtypes > 1)
      if (n != 0) return dispatch_some<dtypes / 2, Others...>(n - 1, f);
    return f(Type<Storage>{});
  }
}

template <class Select>
auto dispatch(int64_t cell, Dtype dtype, Select select) {
  return dispatch_cell(cell, [&](auto c) {
    const auto selected = [&](auto s) {
      return select(Passes<typename decltype(c)::type, typename decltype(s)::type>{});
    };
#if defined(FUSED_RNN_BFLOAT16_PRODUCTS)  // a build for one dtype
    (void)dtype;
    return selected(Type<BFloat16>{});
#elif defined(FUSED_RNN_SPLIT_PRODUCTS)
    (void)dtype;
    return selected(Type<float>{});
#elif defined(FUSED_RNN_DTYPES)
    return dispatch_some<FUSED_RNN_DTYPES, float, double, BFloat16, Half>(static_cast<int>(dtype), selected);
#else
    return dispatch_dtype<BFloat16, Half>(dtype, selected);
#endif
  });
}

const Pass<Forward>& forward(int64_t cell, Dtype dtype) {
  return *dispatch(cell, dtype, [](auto passes) { return &decltype(passes)::kForward; });
}

const Packing& packing(int64_t cell, Dtype dtype) {
  return *dispatch(cell, dtype, [](auto passes) { return &decltype(passes)::kPacking; });
}

const Pass<Backward>& backward(int64_t cell, Dtype dtype) {
  return *dispatch(cell, dtype, [](auto passes) { return &decltype(passes)::kBackward; });
}

}  // namespace

#define FUSED_RNN_JOIN(a, b) a##b
#define FUSED_RNN_TABLE(isa) FUSED_RNN_JOIN(kKernels, isa)
extern const Kernels FUSED_RNN_TABLE(FUSED_RNN_ISA) = {&forward, &packing, &backward};

}  // namespace fused_rnn::cpu
