// What PTX declares: variables, source files and lines.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "program.h"
#include "text.h"

namespace ptx {

// 5.4 Variables: ".shared .align 16 .b8 name[128]". An array without a size has 0 bytes.
struct Variable {
  std::string name;
  std::string space;  // ".shared"; empty where the text names none
  uint32_t bytes = 0, align = 1, element_bytes = 0;
  bool external = false;

  uint32_t aligned(uint32_t offset) const { return (offset + align - 1) / align * align; }
};
Variable parse_variable(std::string_view text);

// A .global or .const variable with its initial value, if any.
struct Initialized {
  Variable variable;
  std::vector<unsigned char> bytes;
};
Initialized parse_initialized(std::string_view text);

// ".reg .b32 %r<5>, %q": a family of registers, or one.
struct RegisterDeclaration {
  std::string_view name;
  std::optional<uint32_t> count;
  uint8_t bytes;  // 4, 8 or kPredicate
};
std::vector<RegisterDeclaration> parse_registers(std::string_view text);

// 11.5.3 .file, 11.5.4 .loc
struct SourceFile {
  uint32_t number;
  std::string path;
};
SourceFile parse_file(std::string_view text);
struct SourceLine {
  uint32_t file = 0, line = 0;
};
SourceLine parse_loc(std::string_view text);

}  // namespace ptx
