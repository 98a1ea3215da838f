// Operands of a kernel: what their names stand for, and where that lies in a warp's register file.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parse_declarations.h"

namespace ptx {

struct Register {
  uint32_t place;
  uint8_t bytes;  // of a lane: 4, 8, or kPredicate
};

struct Address {
  Register base;
  int64_t offset;
};

class Operands {
 public:
  // `shared`: what the module declares outside of kernels.
  Operands(const Module& module, Kernel& kernel, const std::vector<Variable>& shared);

  void open_scope() { scopes_.emplace_back(); }
  void close_scope() { scopes_.pop_back(); }
  void declare(const RegisterDeclaration& declaration);
  void declare_parameter(const Variable& variable);
  void declare_shared(const Variable& variable) { shared_variables_.push_back(variable); }

  Register find(std::string_view name) const;
  Register make_register(uint8_t bytes);
  // A register, a special one, a number, or the address of a variable. Numbers and addresses get `bytes`.
  Register value(std::string_view text, uint8_t bytes);
  Address address(std::string_view text);  // "[%rd1+16]"

  // After the last instruction, when the size of static shared memory is known.
  void place_dynamic_shared();

 private:
  struct Family {
    Register first;
    uint32_t count;
  };
  struct Scope {
    std::map<std::string, Register, std::less<>> single;
    std::map<std::string, Family, std::less<>> families;
  };

  bool find_in(const Scope& scope, std::string_view name, Register& found) const;
  uint32_t constant(uint64_t value, uint8_t bytes);
  uint32_t add_constant(uint64_t value, uint8_t bytes);
  Register special(std::string_view name);
  bool is_symbol(std::string_view name) const;
  uint32_t symbol(std::string_view name, uint8_t bytes);
  const Variable* shared_variable(std::string_view name) const;

  const Module& module_;
  Kernel& kernel_;
  std::vector<Scope> scopes_;
  std::vector<Variable> shared_variables_;
  std::map<std::string, uint32_t, std::less<>> parameters_;     // and their offsets
  std::map<std::string, uint32_t, std::less<>> static_shared_;  // addresses of those that are used
  std::map<std::pair<uint64_t, uint8_t>, uint32_t> constants_;  // value, bytes: place
  // Name, bytes: number among the kernel's constants.
  std::map<std::pair<std::string, uint8_t>, size_t> dynamic_shared_;
};

}  // namespace ptx
