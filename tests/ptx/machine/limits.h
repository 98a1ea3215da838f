// What a GPU refuses to launch. Its size is that of an H200.
#pragma once
#include <cstddef>
#include <string>

#include "grid.h"

namespace ptx {

// NVIDIA H200: compute capability 9.0. CUDA C++ Programming Guide, Technical Specifications per Compute Capability.
constexpr int kMultiprocessors = 132, kMostShared = 227 * 1024;
constexpr int kMostRegisters = 256;  // of a thread: taken for what each kernel needs
constexpr size_t kSharedUnasked = 48 * 1024;

// What a kernel may have beyond what is always there, after the host has asked for it.
struct Allowed {
  size_t dynamic_shared = kSharedUnasked;
  bool large_cluster = false;  // more blocks than every GPU with clusters has
};

// Blocks of a multiprocessor, at the same time. `shared`: bytes of a block, static ones included.
int blocks_of_multiprocessor(int threads, size_t shared);

// Why a launch is refused; empty: it is not.
struct Obstacle {
  std::string reason;
  bool too_many_blocks = false;  // for a cooperative launch, which has an error of its own
};
Obstacle obstacle(const Kernel& kernel, const Launch& how, const Allowed& allowed);

}  // namespace ptx
