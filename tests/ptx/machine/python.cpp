// The machine as a Python module: see tests/ptx/__init__.py, which is what tests use.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "allocations.h"
#include "cuda/host/passes.h"
#include "graphs.h"
#include "grid.h"
#include "library.h"
#include "limits.h"
#include "opcodes.h"
#include "ops/memory.h"

namespace py = pybind11;

namespace ptx {

void take_over_tensor_memory();

namespace {

void set_options(uint32_t seed, Order order, bool weak, bool rough, bool traffic, uint64_t patience) {
  options = {seed, order, weak, rough, traffic, patience};
}

// Of a kernel: for each instruction its line, the name of its opcode, source file and line; and its counts.
py::tuple counts_of(const Loaded& loaded) {
  const Kernel& k = *loaded.kernel;
  py::list lines;
  for (const Instruction& i : k.code) {
    const auto file = loaded.module->source_files.find(i.source_file);
    lines.append(py::make_tuple(i.line, i.line ? opcode_names()[i.opcode] : "",
                                file == loaded.module->source_files.end() ? "" : file->second, i.source_line));
  }
  static_assert(sizeof(Count) == 4 * sizeof(uint64_t));
  py::array_t<uint64_t> counts({k.counts.size(), size_t{4}});
  std::memcpy(counts.mutable_data(), k.counts.data(), k.counts.size() * sizeof(Count));
  return py::make_tuple(lines, counts);
}

void reset_counts() {
  for (const auto& [name, loaded] : library().decoded())
    std::fill(loaded.kernel->counts.begin(), loaded.kernel->counts.end(), Count{});
}

// Decodes every kernel. Returns what is wrong, a line for each kind.
std::vector<std::string> decode_all() {
  std::set<std::string> problems;
  for (const std::string& name : library().names()) try {
      library().kernel(name);
    } catch (const std::exception& e) {
      problems.insert(e.what());
    }
  return {problems.begin(), problems.end()};
}

std::vector<std::string> decoded() {
  std::vector<std::string> names;
  for (const auto& [name, loaded] : library().decoded()) names.push_back(name);
  return names;
}

std::vector<std::string> all_opcodes() { return opcodes().names(); }

// A kernel of a text of its own, with numbers and pointers for arguments.
void launch(const std::string& text, const std::string& name, Launch how, const Allowed& allowed,
            const std::vector<int64_t>& arguments) {
  const auto module = parse(text);
  const auto found = module->kernels.find(name);
  if (found == module->kernels.end()) fail("no kernel is called " + name);
  Kernel& kernel = *found->second;
  if (const std::string refused = obstacle(kernel, how, allowed).reason; !refused.empty())
    fail(refused + ", of " + name);
  if (arguments.size() != kernel.parameters.size())
    fail(name + " has " + std::to_string(kernel.parameters.size()) + " parameters");
  how.parameters.resize(kernel.parameter_bytes);
  for (size_t i = 0; i < arguments.size(); ++i)
    std::memcpy(how.parameters.data() + kernel.parameters[i].offset, &arguments[i], kernel.parameters[i].size);
  run(*module, kernel, how);
}

Dim dim(std::array<uint32_t, 3> sizes) { return {sizes[0], sizes[1], sizes[2]}; }

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void fill_memory(bool fill) {
  fill_allocations(fill);
  fused_rnn::fill_memory(fill);
}

}  // namespace
}  // namespace ptx

PYBIND11_MODULE(FUSED_RNN_MACHINE, m) {
  using namespace ptx;
  py::enum_<Order>(m, "Order")
      .value("in_turn", Order::kInTurn)
      .value("shuffled", Order::kShuffled)
      .value("adversarial", Order::kAdversarial)
      .value("block_ahead", Order::kBlockAhead)
      .value("warp_ahead", Order::kWarpAhead)
      .value("block_behind", Order::kBlockBehind);
  m.def("set_options", &set_options, py::kw_only(), py::arg("seed"), py::arg("order"), py::arg("weak"),
        py::arg("rough"), py::arg("traffic"), py::arg("patience"));
  m.def("set_held_up", [](int64_t block) { held_up = block; });
  m.def("set_silence", [](int64_t block, uint64_t after) { silence = {block, after}; });
  m.def("read_file", [](const std::string& path) { library().read(path); });
  m.def("names", [] { return library().names(); });
  m.def("decoded", &decoded);
  m.def("decode_all", &decode_all);
  m.def("change", [](const std::string& kernel, Changes changes) { library().change(kernel, std::move(changes)); });
  m.def("undo_changes", [] { library().undo_changes(); });
  m.def("text_of", [](const std::string& name) { return library().kernel(name).module->lines; });
  m.def("counts_of", [](const std::string& name) { return counts_of(library().kernel(name)); });
  m.def("launches_of", [](const std::string& name) { return library().kernel(name).kernel->launches; });
  m.def("reset_counts", &reset_counts);
  m.def("totals", [] { return py::make_tuple(totals.launches, totals.instructions, totals.stale, products); });
  m.def("begin_capture", [] { check(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal)); });
  m.def("end_capture", [] {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    check(cudaStreamEndCapture(nullptr, &graph));
    check(cudaGraphInstantiate(&ready, graph, 0));
    check(cudaGraphDestroy(graph));
    return reinterpret_cast<uintptr_t>(ready);
  });
  m.def("replay", [](uintptr_t ready) { check(cudaGraphLaunch(reinterpret_cast<cudaGraphExec_t>(ready), nullptr)); });
  m.def("forget_graph", [](uintptr_t ready) { check(cudaGraphExecDestroy(reinterpret_cast<cudaGraphExec_t>(ready))); });
  using Sizes = std::array<uint32_t, 3>;
  py::class_<Launch>(m, "Launch")
      .def(py::init([](Sizes grid, Sizes block, uint32_t shared_bytes, uint32_t cluster, bool cooperative) {
        return Launch{dim(grid), dim(block), shared_bytes, cluster, cooperative, {}};
      }));
  py::class_<Allowed>(m, "Allowed").def(py::init([](size_t dynamic_shared, bool large_cluster) {
    return Allowed{dynamic_shared, large_cluster};
  }));
  m.def("launch", &launch);
  m.def("opcodes", &all_opcodes);
  m.def("fill_memory", &fill_memory);
  m.def("set_ahead_bytes", &fused_rnn::cuda::set_ahead_bytes);
  take_over_tensor_memory();
}
