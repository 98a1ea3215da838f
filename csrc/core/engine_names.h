// The CUDA engines by name. Python asks for them (ops/info.cpp); their numbers are places in this list.
#pragma once

namespace fused_rnn {

inline constexpr const char* kCudaEngines[] = {"stepwise", "persistent", "one", "cluster", "polling", "flags", "best"};
// Of these, where the persistent kernel's kinds of groups begin, in the order of cuda::Blocks.
inline constexpr int kFirstOfBlocks = 2;

}  // namespace fused_rnn
