// How far an acquire reaches.
#pragma once

namespace fused_rnn::cuda {

// Of a wait for numbers that other blocks of a cluster store into this block's shared memory. By the memory model only
// the cluster's scope is right for them, but it may cost an invalidation of L1 at every poll. The block's is for a GPU
// that has been shown to need no more.
enum class AcquireScope : int { kCluster, kBlock };

}  // namespace fused_rnn::cuda
