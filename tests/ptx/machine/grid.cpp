#include "grid.h"

#include <algorithm>
#include <cstring>

#include "allocations.h"

namespace ptx {

Options options;
Silence silence;
int64_t held_up = -1;
Totals totals;

namespace {

// Register files are large, and fresh memory is slow: those of blocks that have ended are used again. So registers
// begin with what another warp has left, or with NaNs.
std::vector<std::vector<char>>& spare_storage() {
  static std::vector<std::vector<char>> all;
  return all;
}
std::vector<char> take_storage(size_t bytes) {
  std::vector<char> storage;
  if (auto& spare = spare_storage(); !spare.empty()) {
    storage = std::move(spare.back());
    spare.pop_back();
  }
  if (storage.size() < bytes) storage.assign(bytes, '\x7f');
  return storage;
}

// PTX ISA 10 (Special Registers), those that stay what they are.
uint32_t special_register(const std::string& name, const Warp& w, uint32_t lane) {
  const Block& b = *w.block;
  const Launch& launch = b.grid->launch;
  const Dim size = launch.block, grid = launch.grid;
  const uint32_t thread = w.thread(lane);
  const auto workspace = reinterpret_cast<uint64_t>(b.grid->workspace.get());
  const std::pair<const char*, uint32_t> all[] = {
      {"%tid.x", thread % size.x},
      {"%tid.y", thread / size.x % size.y},
      {"%tid.z", thread / size.x / size.y},
      {"%ntid.x", size.x},
      {"%ntid.y", size.y},
      {"%ntid.z", size.z},
      {"%ctaid.x", b.at.x},
      {"%ctaid.y", b.at.y},
      {"%ctaid.z", b.at.z},
      {"%nctaid.x", grid.x},
      {"%nctaid.y", grid.y},
      {"%nctaid.z", grid.z},
      {"%laneid", lane},
      {"%warpid", w.number},
      {"%cluster_ctarank", b.rank},
      {"%cluster_nctarank", launch.cluster},
      {"%envreg1", static_cast<uint32_t>(workspace >> 32)},
      {"%envreg2", static_cast<uint32_t>(workspace)},
  };
  for (const auto& [known, value] : all)
    if (name == known) return value;
  fail("no special register " + name + ", in " + b.grid->kernel.name);
}

}  // namespace

Grid::Grid(Module& module, Kernel& kernel, const Launch& launch)
    : module(module),
      kernel(kernel),
      launch(launch),
      random(options.seed + static_cast<uint32_t>(totals.launches) * 7919u),
      workspace(nullptr, free_fenced) {
  if (!launch.cooperative) return;
  constexpr size_t kWorkspace = 64;
  workspace.reset(allocate_fenced(kWorkspace));
  std::memset(workspace.get(), 0, kWorkspace);
}

Block::Block(Grid& grid, uint32_t number, Cluster& cluster)
    : grid(&grid),
      at({number % grid.launch.grid.x, number / grid.launch.grid.x % grid.launch.grid.y,
          number / grid.launch.grid.x / grid.launch.grid.y}),
      number(number),
      rank(static_cast<uint32_t>(cluster.blocks.size())),
      cluster(&cluster) {
  cluster.blocks.push_back(this);
  shared.resize(grid.kernel.static_shared_bytes + grid.launch.shared_bytes);
  alive = static_cast<uint32_t>((grid.launch.block.count() + kLanes - 1) / kLanes);
  for (uint32_t n = 0; n < alive; ++n) warps.push_back(std::make_unique<Warp>(*this, n));
}

Warp::Warp(Block& block, uint32_t number) : block(&block), number(number), first_thread(kLanes * number) {
  const Kernel& kernel = block.grid->kernel;
  const auto threads = static_cast<uint32_t>(block.grid->launch.block.count());
  const uint32_t count = std::min(kLanes, threads - first_thread);
  lanes = count == kLanes ? kAllLanes : (1u << count) - 1;
  storage = take_storage(kernel.file_bytes + 64);
  file = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
  for (const Constant& c : kernel.constants)
    for (uint32_t lane = 0; lane < kLanes; ++lane) std::memcpy(file + c.place + c.bytes * lane, &c.value, c.bytes);
  for (const auto& [name, place] : kernel.special)
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      const uint32_t value = special_register(name, *this, lane);
      std::memcpy(file + place + 4 * lane, &value, 4);
    }
  fragments.push_back({0, lanes, false});
  if (options.weak) clocks.resize(kLanes);
}

Warp::~Warp() { spare_storage().push_back(std::move(storage)); }

uint32_t Warp::grid_thread(uint32_t lane) const {
  return static_cast<uint32_t>(block->number * block->grid->launch.block.count()) + thread(lane);
}

void fail_at(const Warp& w, const Instruction& i, const std::string& what) {
  const Grid& g = *w.block->grid;
  std::string text = what + "\n  at line " + std::to_string(i.line) + " of the PTX";
  if (i.line > 0 && i.line <= g.module.lines.size()) text += ":" + g.module.lines[i.line - 1].substr(0, 200);
  if (const auto file = g.module.source_files.find(i.source_file); file != g.module.source_files.end())
    text += "\n  from " + file->second + ":" + std::to_string(i.source_line);
  fail(text + "\n  block " + std::to_string(w.block->number) + ", warp " + std::to_string(w.number) + ", in " +
       g.kernel.name);
}

}  // namespace ptx
