// CUDA kernels as ordinary C++, run on the CPU: what csrc/cuda/device.h and launch.h include where nvcc does not
// compile them. It models threads, warps, blocks, clusters and grids, their barriers, shared memory, mbarriers, and
// matrix products by fragments. It knows nothing of speed, and of memory ordering only what ThreadSanitizer sees
// (threads.h).
//
//   machine.h        what a grid consists of          launch.h    running one
//   fibers.h         threads that take turns          threads.h   the same on OS threads, with -DEMULATOR_THREADS
//   schedule.h       in which order                   shared_memory.h, words.h   memory
//   warp.h, cluster.h                                 what threads do together
#pragma once
#include "cluster.h"
#include "launch.h"
#include "machine.h"
#include "warp.h"
#include "words.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (emulator::self().index)
#define blockIdx (emulator::self().block->index)
#define blockDim (emulator::self().grid->threads)
#define gridDim (emulator::self().grid->blocks)

inline void __syncthreads(const std::source_location& at = std::source_location::current()) {
  emulator::Barrier& barrier = emulator::self().block->barrier;
  barrier.wait(barrier.arrive(at), at);
}
