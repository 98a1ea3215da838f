#include "limits.h"

#include <algorithm>

namespace ptx {
namespace {

constexpr size_t kSharedOfMultiprocessor = 228 * 1024, kSharedOfSystem = 1024;  // the latter of every block
constexpr int kThreadsOfMultiprocessor = 2048, kBlocksOfMultiprocessor = 32, kRegistersOfMultiprocessor = 65536;
constexpr uint32_t kMostThreads = 1024, kMostThreadsZ = 64, kMostBlocksX = 0x7fffffff, kMostBlocksYZ = 65535;
constexpr uint32_t kPortableCluster = 8, kMostCluster = 16;
constexpr uint32_t kMostParameters = 4096;  // bytes

std::string of(const std::string& what, uint64_t number, const std::string& most, uint64_t limit) {
  return what + std::to_string(number) + ", " + most + " " + std::to_string(limit);
}

}  // namespace

int blocks_of_multiprocessor(int threads, size_t shared) {
  const int by_shared = static_cast<int>(kSharedOfMultiprocessor / (shared + kSharedOfSystem));
  const int by_registers = std::max(1, kRegistersOfMultiprocessor / (kMostRegisters * threads));
  return std::min({by_shared, kThreadsOfMultiprocessor / threads, by_registers, kBlocksOfMultiprocessor});
}

Obstacle obstacle(const Kernel& kernel, const Launch& how, const Allowed& allowed) {
  const uint64_t threads = how.block.count(), shared = uint64_t{how.shared_bytes} + kernel.static_shared_bytes;
  if (threads == 0 || threads > kMostThreads) return {of("threads of a block: ", threads, "1 to", kMostThreads)};
  if (how.block.z > kMostThreadsZ) return {of("a block's z of ", how.block.z, "at most", kMostThreadsZ)};
  if (threads > kernel.most_threads)
    return {of("threads of a block: ", threads, "by __launch_bounds__ at most", kernel.most_threads)};
  if (how.grid.count() == 0) return {"a grid of no blocks"};
  if (how.grid.x > kMostBlocksX) return {of("a grid's x of ", how.grid.x, "at most", kMostBlocksX)};
  if (const uint32_t most = std::max(how.grid.y, how.grid.z); most > kMostBlocksYZ)
    return {of("a grid's y or z of ", most, "at most", kMostBlocksYZ)};
  if (how.shared_bytes > allowed.dynamic_shared)
    return {of("bytes of dynamic shared memory: ", how.shared_bytes, "asked for", allowed.dynamic_shared)};
  if (shared > kMostShared) return {of("bytes of shared memory of a block: ", shared, "at most", kMostShared)};
  if (kernel.parameter_bytes > kMostParameters)
    return {of("bytes of parameters: ", kernel.parameter_bytes, "at most", kMostParameters)};
  if (how.cluster == 0 || how.cluster > kMostCluster)
    return {of("blocks of a cluster: ", how.cluster, "1 to", kMostCluster)};
  if (how.cluster > kPortableCluster && !allowed.large_cluster)
    return {of("blocks of a cluster: ", how.cluster, "without having asked at most", kPortableCluster)};
  if (how.grid.x % how.cluster) return {of("a grid's x of ", how.grid.x, "no multiple of the cluster's", how.cluster)};
  if (how.cluster > 1 && how.cooperative) return {"a cooperative launch of clusters, which is not checked here"};
  const auto each = static_cast<uint64_t>(blocks_of_multiprocessor(static_cast<int>(threads), shared));
  if (how.cooperative && how.grid.count() > each * kMultiprocessors)
    return {of("blocks of a cooperative launch: ", how.grid.count(), "at most", each * kMultiprocessors), true};
  return {};
}

}  // namespace ptx
