#include "parse_body.h"

#include <unordered_map>

namespace ptx {
namespace {

uint32_t number_of_opcode(const std::string& name) {
  static std::unordered_map<std::string, uint32_t> numbers;
  const auto [found, added] = numbers.try_emplace(name, static_cast<uint32_t>(opcode_names().size()));
  if (added) opcode_names().push_back(name);
  return found->second;
}

// Elements of "{a, b}".
std::vector<std::string_view> elements(std::string_view braces) {
  return split(braces.substr(1, braces.rfind('}') - 1));
}

// The name of the function in "(result), name, (arguments)".
std::string_view called(const std::vector<std::string_view>& operands) {
  for (const std::string_view one : operands)
    if (!one.starts_with('(')) return one;
  return {};
}

struct Statement {
  std::string opcode;
  std::vector<std::string_view> operands;
};

// With names of this machine's own for what the operands of mov and call say.
Statement resolved(std::string_view opcode, std::string_view text) {
  Statement statement = {std::string(opcode), split(text)};
  auto& [name, operands] = statement;
  if (opcode == "call" || opcode == "call.uni") {
    const std::string_view function = called(operands);
    if (function != "__assertfail") fail("call of " + std::string(function) + ": only kernels are supported");
    return {"trap.assert", {}};
  }
  if (!opcode.starts_with("mov.") || operands.size() != 2) return statement;
  const std::string type = name.substr(3);
  const std::string_view to = operands[0], from = operands[1];
  if (to.starts_with('{'))
    name = "mov.unpack" + std::to_string(elements(to).size()) + type;
  else if (from.starts_with('{'))
    name = "mov.pack" + std::to_string(elements(from).size()) + type;
  else if (from == "%globaltimer" || from == "%clock64")
    statement = {"mov." + std::string(from.substr(1)), {to}};
  return statement;
}

}  // namespace

void Body::begin_scope() {
  scopes_.emplace_back();
  operands_.open_scope();
}

bool Body::end_scope() {
  if (scopes_.size() == 1) {
    end();
    return true;
  }
  const Scope scope = std::move(scopes_.back());
  scopes_.pop_back();
  operands_.close_scope();
  resolve(scope);
  return false;
}

// Branches to what the scope does not have go to a label of the next one around it.
void Body::resolve(const Scope& scope) {
  for (const Branch& branch : scope.branches) {
    if (const auto label = scope.labels.find(branch.label); label != scope.labels.end())
      kernel_.code[branch.instruction].target = label->second;
    else if (!scopes_.empty())
      scopes_.back().branches.push_back(branch);
    else
      fail("no label " + std::string(branch.label) + " for the branch at line " +
           std::to_string(kernel_.code[branch.instruction].line));
  }
}

void Body::label(std::string_view name) {
  if (!scopes_.back().labels.try_emplace(name, kernel_.code.size()).second)
    fail("label " + std::string(name) + " is there twice");
}

void Body::end() {
  const Scope scope = std::move(scopes_.back());
  scopes_.clear();
  resolve(scope);
  Instruction exit;  // of a body that ends without one; it has no line
  exit.kind = Kind::kExit;
  kernel_.code.push_back(exit);
  kernel_.counts.resize(kernel_.code.size());
  operands_.place_dynamic_shared();
}

// "@!%p1 ..." (9.3 Predicated Execution)
std::string_view Body::take_guard(Instruction& i, std::string_view text) {
  if (!text.starts_with('@')) return text;
  std::string_view guard = take_word(text).substr(1);
  i.negated = guard.starts_with('!');
  if (i.negated) guard.remove_prefix(1);
  const Register found = operands_.find(guard);
  if (found.bytes != kPredicate) fail(std::string(guard) + " is not a predicate");
  i.predicate = found.place;
  return text;
}

void Body::instruction(std::string_view text, uint32_t line) {
  Instruction i;
  i.line = line;
  i.source_file = source_.file;
  i.source_line = source_.line;
  std::string_view rest = take_guard(i, text);
  const std::string_view opcode = take_word(rest);
  if (!control(i, opcode, rest)) decode(i, opcode, rest);
}

// 9.7.12 (Control Flow Instructions), which the scheduler does itself.
bool Body::control(const Instruction& i, std::string_view opcode, std::string_view rest) {
  const bool branches = opcode == "bra" || opcode == "bra.uni";
  if (!branches && opcode != "ret" && opcode != "ret.uni" && opcode != "exit") return false;
  if (branches) scopes_.back().branches.push_back({kernel_.code.size(), rest});
  Instruction& added = kernel_.code.emplace_back(i);
  added.kind = branches ? Kind::kBranch : Kind::kExit;
  added.opcode = number_of_opcode(std::string(opcode));
  return true;
}

void Body::decode(Instruction i, std::string_view opcode, std::string_view rest) {
  const Statement statement = resolved(opcode, rest);
  const OpcodeName name(statement.opcode);
  if (name.has("local")) fail("local memory is not supported: " + statement.opcode);
  const Semantics& means = opcodes().find(statement.opcode);
  i.run = means.run;
  i.kind = means.kind;
  i.opcode = number_of_opcode(statement.opcode);
  i.semantic = name.semantic();
  i.scope = name.scope();
  Sources sources = {name, means};
  std::vector<Instruction> after;
  bool is_result = name.has_result();
  for (const std::string_view text : statement.operands) {
    if (is_result)
      destination(i, name, text, after);
    else if (text.starts_with('['))
      address(i, sources, text);
    else if (text.starts_with('{'))
      for (const std::string_view one : elements(text)) source(i, sources, one);
    else
      source(i, sources, text);
    is_result = false;
  }
  if (is_result || sources.are_missing()) fail("fewer operands than the opcode has");
  // The member mask is the last operand of shfl, vote and bar.warp; mma has none.
  if (i.kind == Kind::kWarp && name.first() != "mma" && sources.next > 0) i.members = i.s[sources.next - 1];
  kernel_.code.push_back(i);
  kernel_.code.insert(kernel_.code.end(), after.begin(), after.end());
}

// An instruction of this machine's own, before or after one of the text and under the same guard.
Instruction Body::helper(const Instruction& i, const std::string& opcode, uint32_t d, uint32_t s) const {
  Instruction made;
  made.run = opcodes().find(opcode).run;
  made.opcode = number_of_opcode(opcode);
  made.predicate = i.predicate;
  made.negated = i.negated;
  made.line = i.line;
  made.source_file = i.source_file;
  made.source_line = i.source_line;
  made.d[0] = d;
  made.s[0] = s;
  return made;
}

// "%r1", "{%r1, _}" or "%p1|%p2"
void Body::destination(Instruction& i, const OpcodeName& name, std::string_view text, std::vector<Instruction>& after) {
  const bool is_vector = text.starts_with('{');
  const bool unpacks = name.has("unpack2") || name.has("unpack4");
  std::vector<std::string_view> all;
  if (is_vector) {
    all = elements(text);
  } else if (const size_t bar = text.find('|'); bar != std::string_view::npos) {
    all = {trimmed(text.substr(0, bar)), trimmed(text.substr(bar + 1))};
  } else {
    all = {text};
  }
  if (all.size() > kMostResults) fail("too many results");
  if (text == "_" && name.first() != "mbarrier") fail("no register for the result");
  for (size_t k = 0; k < all.size(); ++k) {
    if (all[k] == "_") continue;
    const Register to = operands_.find(all[k]);
    const bool is_second_predicate = k == 1 && !is_vector;  // of setp and shfl
    const uint8_t needs = unpacks ? 4 : is_second_predicate ? kPredicate : name.result_bytes();
    i.d[k] = to.place;
    if (to.bytes == needs) continue;
    if (!name.widens_result() || to.bytes != 8 || needs != 4)
      fail("a result of another size than " + std::string(all[k]));
    i.d[k] = operands_.make_register(4).place;
    after.push_back(helper(i, name.is_result_signed() ? "cvt.s64.s32" : "cvt.u64.u32", to.place, i.d[k]));
  }
}

void Body::source(Instruction& i, Sources& sources, std::string_view text) {
  if (sources.next >= kMostSources) fail("too many operands");
  const uint8_t bytes = sources.means.source_bytes[sources.next];
  if (bytes == 0) fail("more operands than the opcode has");
  const bool negates = text.starts_with('!');
  if (negates && bytes != kPredicate) fail("a negated operand that is not a predicate");
  Register from = operands_.value(negates ? text.substr(1) : text, bytes);
  if (from.bytes == 8 && bytes == 4 && sources.name.narrows_source()) from = prepared(i, "cvt.u32.u64", from, bytes);
  if (from.bytes != bytes) fail("an operand of another size than " + std::string(text));
  if (negates) from = prepared(i, "not.pred", from, bytes);
  i.s[sources.next++] = from.place;
}

Register Body::prepared(const Instruction& i, const std::string& opcode, Register from, uint8_t bytes) {
  const Register made = operands_.make_register(bytes);
  kernel_.code.push_back(helper(i, opcode, made.place, from.place));
  return made;
}

void Body::address(Instruction& i, Sources& sources, std::string_view text) {
  if (sources.addresses == std::size(i.offset) || sources.next >= kMostSources) fail("too many addresses");
  const Address found = operands_.address(text);
  i.s[sources.next++] = found.base.place;
  i.wide_address[sources.addresses] = found.base.bytes == 8;
  i.offset[sources.addresses++] = found.offset;
}

}  // namespace ptx
