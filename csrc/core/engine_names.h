// The CUDA engines' names; an engine's number is its index here. Python reads this list (ops/info.cpp).
#pragma once

namespace fused_rnn {

inline constexpr const char* kCudaEngines[] = {"stepwise", "persistent", "one", "cluster", "polling", "flags", "best"};
// Index of the first of the persistent kernel's kinds of groups, in the order of cuda::Blocks.
inline constexpr int kFirstOfBlocks = 2;

}  // namespace fused_rnn
