#include "opcodes.h"

#include <algorithm>

namespace ptx {

Opcodes::Opcodes() {
  add_integer(*this);
  add_floating_point(*this);
  add_comparisons(*this);
  add_conversions(*this);
  add_moves(*this);
  add_warp(*this);
  add_matrices(*this);
  add_memory(*this);
  add_barriers(*this);
}

void Opcodes::add(const std::string& name, Execute run, std::initializer_list<int> source_bytes, Kind kind) {
  Semantics semantics = {run, kind, {}};
  size_t source = 0;
  for (const int bytes : source_bytes) semantics.source_bytes[source++] = static_cast<uint8_t>(bytes);
  if (!all_.try_emplace(name, semantics).second) fail("opcode " + name + " is there twice");
}

const Semantics& Opcodes::find(const std::string& name) const {
  const auto found = all_.find(name);
  if (found == all_.end()) fail("unknown opcode " + name);
  return found->second;
}

std::vector<std::string> Opcodes::names() const {
  std::vector<std::string> all;
  for (const auto& [name, semantics] : all_) all.push_back(name);
  std::ranges::sort(all);
  return all;
}

const Opcodes& opcodes() {
  static const Opcodes all;
  return all;
}

std::vector<std::string>& opcode_names() {
  static std::vector<std::string> all;
  return all;
}

}  // namespace ptx
