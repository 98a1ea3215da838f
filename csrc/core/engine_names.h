// The engines' names; an engine's number is its index here. Python reads this list (ops/info.cpp).
#pragma once

namespace fused_rnn {

// Those of CUDA come first. The others are of all devices, and Python tells them apart: a call that reaches an engine
// of ours under such a name takes the default.
inline constexpr const char* kEngines[] = {"stepwise", "persistent", "one",  "cluster", "polling",
                                           "flags",    "best",       "ours", "auto",    "torch"};
inline constexpr int kCudaEngines = 7;
// Index of the first of the persistent kernel's kinds of groups, in the order of cuda::Blocks.
inline constexpr int kFirstOfBlocks = 2;

}  // namespace fused_rnn
