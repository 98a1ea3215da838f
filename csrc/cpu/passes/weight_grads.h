// dL/dW_ih = dgates^T x, dL/dW_hh = dgates^T h, dL/dW_hr = dh^T (h before the projection): sums over all rows of a
// round.
//
//   pack_operands   x and h into panels                                          weight_grads/pack.h
//   weight_grads    strips (weight_grads/strip.h) times these                    weight_grads/products.h
//   store_...       sums that were accumulated in the workspace (.../state.h)    weight_grads/store.h
#pragma once
#include "cpu/passes/tokens.h"
#include "cpu/passes/weight_grads/pack.h"
#include "cpu/passes/weight_grads/products.h"
#include "cpu/passes/weight_grads/store.h"

namespace fused_rnn::cpu {
namespace {

// Its entries in the table of phases (schedule/kernels.h).
template <class S>
struct WeightGradsPass {
  using Share = WeightGradShare<S>;

  static int64_t bytes(const Backward& g, const Plan& plan) { return BackwardWorkspace<S>::bytes(g, plan); }

  static int64_t count(const Backward& g, const Plan& plan) {
    return wants_weight_grads(g) ? Share::count(g, plan) : 0;
  }
  static void pack_operands(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    OperandPacker<S>({g, plan, buffer}, round, task).run();
  }
  static void weight_grads(const Backward& g, const Plan& plan, void* buffer, int64_t round, int64_t task) {
    WeightProducts<S>({g, plan, buffer}, round, task).run();
  }

  static int64_t count_token_grads(const Backward& g, const Plan& plan) {
    return WeightGradState<S>::adds_by_token(g) ? Share::count(g, plan) : 0;
  }
  static void store_token_grads(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    WeightGradStores<S>({g, plan, buffer}, task).store_token_grads();
  }
  static int64_t count_stores(const Backward& g, const Plan& plan) {
    return WeightGradState<S>::layout_hh(g).elsewhere ? Share::count(g, plan) : 0;
  }
  static void store_sums(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t task) {
    WeightGradStores<S>({g, plan, buffer}, task).store_sums();
  }
  static int64_t count_problems(const Backward& g, const Plan&) { return problems(g); }
  static void store_biases(const Backward& g, const Plan& plan, void* buffer, int64_t, int64_t problem) {
    WeightGradStores<S>({g, plan, buffer}, problem * plan.threads).store_biases();
  }
};

}  // namespace
}  // namespace fused_rnn::cpu
