// What the name of an opcode says about its operands and its memory semantics.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "program.h"

namespace ptx {

class OpcodeName {
 public:
  explicit OpcodeName(std::string_view name);

  std::string_view first() const { return parts_.front(); }  // "ld"
  bool has(std::string_view part) const;
  bool is_any_of(std::initializer_list<std::string_view> firsts) const;

  bool has_result() const;
  uint8_t result_bytes() const;   // of the result's register: 4, 8 or kPredicate
  bool is_result_signed() const;  // whether a wider register is filled up with its sign
  bool widens_result() const;     // 9.4.1 (Operand Size Exceeding Instruction-Type Size)
  bool narrows_source() const;
  Semantic semantic() const;
  Scope scope() const;

 private:
  std::string_view result_type() const;

  std::vector<std::string_view> parts_;  // between the dots
};

}  // namespace ptx
