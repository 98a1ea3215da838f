// The body of a kernel: its statements, decoded one after the other.
#pragma once
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "opcode_names.h"
#include "opcodes.h"
#include "parse_operands.h"

namespace ptx {

constexpr size_t kMostSources = std::size(Instruction{}.s), kMostResults = std::size(Instruction{}.d);

class Body {
 public:
  Body(Kernel& kernel, Operands& operands) : kernel_(kernel), operands_(operands), scopes_(1) {}

  // "{" and "}", which may hold registers and labels of their own. end_scope: whether that was the end of the body.
  void begin_scope();
  bool end_scope();
  void label(std::string_view name);
  void set_source(const SourceLine& source) { source_ = source; }
  void instruction(std::string_view text, uint32_t line);

 private:
  struct Branch {
    size_t instruction;
    std::string_view label;
  };
  struct Scope {
    std::map<std::string_view, uint32_t> labels;  // and the instructions that follow them
    std::vector<Branch> branches;                 // to labels of this scope or of one around it
  };
  // Those of an instruction that is being read.
  struct Sources {
    const OpcodeName& name;
    const Semantics& means;
    size_t next = 0;  // in Instruction::s
    size_t addresses = 0;

    // Stores have as many as their vectors; everything else has all that the table says.
    bool are_missing() const { return name.first() != "st" && next < kMostSources && means.source_bytes[next] != 0; }
  };

  std::string_view take_guard(Instruction& i, std::string_view text);
  bool control(const Instruction& i, std::string_view opcode, std::string_view rest);
  void decode(Instruction i, std::string_view opcode, std::string_view rest);
  // `after`: what must follow, the conversion of a result into a register that is wider than its type (9.4.1).
  void destination(Instruction& i, const OpcodeName& name, std::string_view text, std::vector<Instruction>& after);
  // One that is wider than its type counts with its low bits (9.4.1).
  void source(Instruction& i, Sources& sources, std::string_view text);
  void address(Instruction& i, Sources& sources, std::string_view text);
  // The result of an instruction of this machine's own before the one that is being read.
  Register prepared(const Instruction& i, const std::string& opcode, Register from, uint8_t bytes);
  Instruction helper(const Instruction& i, const std::string& opcode, uint32_t d, uint32_t s) const;
  void resolve(const Scope& scope);
  void end();

  Kernel& kernel_;
  Operands& operands_;
  std::vector<Scope> scopes_;
  SourceLine source_;
};

}  // namespace ptx
