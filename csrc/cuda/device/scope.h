// The memory scope of an acquire.
#pragma once

namespace fused_rnn::cuda {

// Of a wait for data that other blocks of a cluster store into this block's shared memory. The memory model requires
// cluster scope, which may invalidate L1 at every poll; block scope is for GPUs on which it has been shown to suffice.
enum class AcquireScope : int { kCluster, kBlock };

}  // namespace fused_rnn::cuda
