#include "parse_operands.h"

#include <algorithm>
#include <array>

#include "opcodes.h"
#include "shared_memory.h"

namespace ptx {
namespace {

constexpr uint32_t kLanesOfWarp = 32, kRegisterAlign = 64;

uint32_t file_bytes(uint8_t bytes) { return bytes == kPredicate ? 4 : kLanesOfWarp * bytes; }

}  // namespace

Operands::Operands(const Module& module, Kernel& kernel, const std::vector<Variable>& shared)
    : module_(module), kernel_(kernel), scopes_(1), shared_variables_(shared) {}

Register Operands::make_register(uint8_t bytes) {
  if (bytes != kPredicate)
    kernel_.file_bytes = (kernel_.file_bytes + kRegisterAlign - 1) / kRegisterAlign * kRegisterAlign;
  const Register made = {kernel_.file_bytes, bytes};
  kernel_.file_bytes += file_bytes(bytes);
  return made;
}

void Operands::declare(const RegisterDeclaration& declaration) {
  Scope& scope = scopes_.back();
  if (!declaration.count) {
    scope.single[std::string(declaration.name)] = make_register(declaration.bytes);
    return;
  }
  const Register first = make_register(declaration.bytes);
  kernel_.file_bytes = first.place + *declaration.count * file_bytes(declaration.bytes);
  scope.families[std::string(declaration.name)] = {first, *declaration.count};
}

void Operands::declare_parameter(const Variable& variable) {
  const uint32_t offset = variable.aligned(kernel_.parameter_bytes);
  parameters_[variable.name] = offset;
  kernel_.parameters.push_back({offset, variable.bytes});
  kernel_.parameter_bytes = offset + variable.bytes;
}

bool Operands::find_in(const Scope& scope, std::string_view name, Register& found) const {
  if (const auto one = scope.single.find(name); one != scope.single.end()) {
    found = one->second;
    return true;
  }
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  if (digits == name.size()) return false;
  const auto family = scope.families.find(name.substr(0, digits));
  if (family == scope.families.end()) return false;
  uint64_t index = 0;
  for (const char digit : name.substr(digits)) index = index * 10 + static_cast<uint64_t>(digit - '0');
  if (index >= family->second.count) return false;
  found = family->second.first;
  found.place += static_cast<uint32_t>(index) * file_bytes(found.bytes);
  return true;
}

Register Operands::find(std::string_view name) const {
  Register found;
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (find_in(*scope, name, found)) return found;
  fail("unknown register " + std::string(name));
}

uint32_t Operands::add_constant(uint64_t value, uint8_t bytes) {
  const uint32_t place = make_register(bytes).place;
  kernel_.constants.push_back({place, bytes, value});
  return place;
}

uint32_t Operands::constant(uint64_t value, uint8_t bytes) {
  if (bytes == kPredicate) {  // a bit of every lane: the same as a word in one of them
    value = value ? ~uint32_t{0} : 0;
    bytes = 4;
  }
  if (bytes == 4) value &= ~uint32_t{0};
  const auto [found, added] = constants_.try_emplace({value, bytes}, 0);
  if (added) found->second = add_constant(value, bytes);
  return found->second;
}

Register Operands::special(std::string_view name) {
  const auto [found, added] = kernel_.special.try_emplace(std::string(name), 0);
  if (added) found->second = make_register(4).place;
  return {found->second, 4};
}

const Variable* Operands::shared_variable(std::string_view name) const {
  // From the end: what a kernel declares hides what the module does.
  const auto found = std::find_if(shared_variables_.rbegin(), shared_variables_.rend(),
                                  [&](const Variable& variable) { return variable.name == name; });
  return found == shared_variables_.rend() ? nullptr : &*found;
}

bool Operands::is_symbol(std::string_view name) const {
  if (name.starts_with('%')) return false;  // so that registers are found fast
  return parameters_.contains(name) || shared_variable(name) || module_.globals.contains(std::string(name));
}

// The place of a variable's address: in shared memory, among the parameters, or in global memory.
uint32_t Operands::symbol(std::string_view name, uint8_t bytes) {
  if (const auto parameter = parameters_.find(name); parameter != parameters_.end())
    return constant(parameter->second, bytes);
  const Variable* const variable = shared_variable(name);
  if (!variable) return constant(reinterpret_cast<uint64_t>(module_.globals.at(std::string(name)).get()), bytes);
  if (variable->external) {
    const auto [found, added] = dynamic_shared_.try_emplace({std::string(name), bytes}, kernel_.constants.size());
    if (added) add_constant(0, bytes);
    return kernel_.constants[found->second].place;
  }
  const auto [found, added] = static_shared_.try_emplace(std::string(name), 0);
  if (added) {
    const uint32_t offset = variable->aligned(kernel_.static_shared_bytes);
    found->second = kSharedBase + offset;
    kernel_.static_shared_bytes = offset + variable->bytes;
  }
  return constant(found->second, bytes);
}

void Operands::place_dynamic_shared() {
  if (dynamic_shared_.empty()) return;
  constexpr uint32_t kAlign = 128;
  kernel_.static_shared_bytes = (kernel_.static_shared_bytes + kAlign - 1) / kAlign * kAlign;
  for (const auto& [name, number] : dynamic_shared_)
    kernel_.constants[number].value = kSharedBase + kernel_.static_shared_bytes;
}

Register Operands::value(std::string_view text, uint8_t bytes) {
  // Chapter 10 (Special Registers); those that change are opcodes of their own.
  static constexpr std::array<std::string_view, 8> kSpecial = {"%tid.",   "%ntid.",  "%ctaid.",   "%nctaid.",
                                                               "%laneid", "%warpid", "%cluster_", "%envreg"};
  if (is_number(text)) return {constant(number(text), bytes), bytes};
  if (text == "WARP_SZ") return {constant(kLanesOfWarp, bytes), bytes};
  if (is_symbol(text)) return {symbol(text, bytes), bytes};
  if (std::ranges::any_of(kSpecial, [&](std::string_view name) { return text.starts_with(name); }))
    return special(text);
  return find(text);
}

Address Operands::address(std::string_view text) {
  std::string_view base = trimmed(text.substr(1, text.rfind(']') - 1)), offset = "0";
  if (const size_t sign = base.find_first_of("+-", 1); sign != std::string_view::npos) {
    offset = trimmed(base.substr(sign + (base[sign] == '+')));
    base = trimmed(base.substr(0, sign));
  }
  const Register at = is_symbol(base) ? Register{symbol(base, 8), 8} : find(base);
  if (at.bytes == kPredicate) fail("an address in a predicate: " + std::string(base));
  return {at, static_cast<int64_t>(number(offset))};
}

}  // namespace ptx
