// What opcodes mean, by their full names as they stand in PTX ("add.s32"). Every file opcodes_*.cpp adds a group of
// them, and names beside each the section of the PTX ISA manual (version 9.0) that says so.
#pragma once
#include <initializer_list>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

constexpr uint8_t kPredicate = 1;  // in place of a register's size

struct Semantics {
  Execute run;
  Kind kind;
  uint8_t source_bytes[10];  // size of each source's register, which immediates take too: 4, 8, or kPredicate
};

class Opcodes {
 public:
  Opcodes();
  void add(const std::string& name, Execute run, std::initializer_list<int> source_bytes, Kind kind = Kind::kPlain);
  const Semantics& find(const std::string& name) const;  // throws for what is not known
  std::vector<std::string> names() const;                // of all, sorted

 private:
  std::unordered_map<std::string, Semantics> all_;
};

const Opcodes& opcodes();

void add_integer(Opcodes&);
void add_floating_point(Opcodes&);
void add_comparisons(Opcodes&);  // and selections
void add_conversions(Opcodes&);
void add_moves(Opcodes&);     // registers, their parts, and clocks
void add_warp(Opcodes&);      // shuffles, votes, traps
void add_matrices(Opcodes&);  // mma
void add_memory(Opcodes&);    // loads, stores, reductions
void add_barriers(Opcodes&);  // barriers, mbarriers, asynchronous stores, fences

}  // namespace ptx
