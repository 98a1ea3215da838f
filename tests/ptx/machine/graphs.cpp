#include "graphs.h"

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "allocations.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Graph {
  std::vector<std::function<cudaError_t()>> work;
  std::vector<void*> released;  // of the memory that was taken while it was captured

  ~Graph() {
    for (void* each : released) ptx::free_fenced(each);
  }
};
using Shared = std::shared_ptr<Graph>;  // behind cudaGraph_t, cudaGraphExec_t

std::mutex mutex;

std::map<cudaStream_t, Shared>& captures() {
  static auto& all = *new std::map<cudaStream_t, Shared>;
  return all;
}

// Whose pool memory is of, as torch has one for each graph.
std::map<void*, std::weak_ptr<Graph>>& pools() {
  static auto& all = *new std::map<void*, std::weak_ptr<Graph>>;  // tensors may outlive whatever else is
  return all;
}

thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

}  // namespace

bool ptx::capture(cudaStream_t stream, std::function<cudaError_t()> work) {
  const std::lock_guard lock(mutex);
  const auto found = captures().find(stream);
  if (found == captures().end()) return false;
  found->second->work.push_back(std::move(work));
  return true;
}

bool ptx::forbids_waiting() {
  const std::lock_guard lock(mutex);
  return !captures().empty() && mode != cudaStreamCaptureModeRelaxed;
}

void ptx::note_allocation(void* memory) {
  const std::lock_guard lock(mutex);
  if (!captures().empty()) pools()[memory] = captures().begin()->second;
}

bool ptx::keeps(void* memory) {
  const std::lock_guard lock(mutex);
  const auto found = pools().extract(memory);
  if (found.empty()) return false;
  const Shared graph = found.mapped().lock();
  if (graph) graph->released.push_back(memory);
  return graph != nullptr;
}

// A stream is only a name here: what it is asked for is done at once.
EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* wanted) {
  std::swap(*wanted, mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard lock(mutex);
  return captures().try_emplace(stream, std::make_shared<Graph>()).second ? cudaSuccess : cudaErrorIllegalState;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard lock(mutex);
  const auto found = captures().extract(stream);
  if (found.empty()) return cudaErrorIllegalState;
  *graph = reinterpret_cast<cudaGraph_t>(new Shared(found.mapped()));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  *ready = reinterpret_cast<cudaGraphExec_t>(new Shared(*reinterpret_cast<const Shared*>(graph)));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
  for (const auto& work : (*reinterpret_cast<const Shared*>(ready))->work)
    if (const cudaError_t error = work(); error != cudaSuccess) return error;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Shared*>(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  delete reinterpret_cast<Shared*>(ready);
  return cudaSuccess;
}
