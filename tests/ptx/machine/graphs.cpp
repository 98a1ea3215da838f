#include "graphs.h"

#include <map>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Graph = std::vector<std::function<cudaError_t()>>;  // behind cudaGraph_t, cudaGraphExec_t

std::map<cudaStream_t, Graph>& captures() {
  static std::map<cudaStream_t, Graph> all;
  return all;
}

}  // namespace

bool ptx::capture(cudaStream_t stream, std::function<cudaError_t()> work) {
  const auto found = captures().find(stream);
  if (found == captures().end()) return false;
  found->second.push_back(std::move(work));
  return true;
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
// What a thread may do while others capture: all of it, here.
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return captures().try_emplace(stream).second ? cudaSuccess : cudaErrorIllegalState;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const auto found = captures().extract(stream);
  if (found.empty()) return cudaErrorIllegalState;
  *graph = reinterpret_cast<cudaGraph_t>(new Graph(found.mapped()));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  *ready = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<const Graph*>(graph)));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
  for (const auto& work : *reinterpret_cast<const Graph*>(ready))
    if (const cudaError_t error = work(); error != cudaSuccess) return error;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  delete reinterpret_cast<Graph*>(ready);
  return cudaSuccess;
}
