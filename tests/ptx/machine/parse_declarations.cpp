#include "parse_declarations.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "opcodes.h"

namespace ptx {
namespace {

template <size_t n>
bool is_one_of(std::string_view word, const std::array<std::string_view, n>& words) {
  return std::ranges::find(words, word) != words.end();
}

// 5.2.1 Fundamental Types, of variables: 0 for what is none.
uint32_t bytes_of_type(std::string_view type) {
  if (type.size() < 3 || type[0] != '.' || std::strchr("busf", type[1]) == nullptr || !is_number(type.substr(2)))
    return 0;
  return static_cast<uint32_t>(number(type.substr(2))) / 8;
}

// "[4][8]" are 32; "[]" are 0.
uint32_t count_of(std::string_view dimensions) {
  uint32_t count = 1;
  while (!dimensions.empty()) {
    const size_t end = dimensions.find(']');
    if (dimensions[0] != '[' || end == std::string_view::npos) fail("not the dimensions of an array");
    const std::string_view size = trimmed(dimensions.substr(1, end - 1));
    count *= size.empty() ? 0 : static_cast<uint32_t>(number(size));
    dimensions = trimmed(dimensions.substr(end + 1));
  }
  return count;
}

}  // namespace

Variable parse_variable(std::string_view text) {
  static constexpr std::array<std::string_view, 5> kSpaces = {".global", ".shared", ".const", ".local", ".param"};
  static constexpr std::array<std::string_view, 3> kLinkage = {".visible", ".weak", ".common"};
  const std::string_view whole = trimmed(text);
  const auto refuse = [&] { fail("cannot read the declaration " + std::string(whole.substr(0, 100))); };
  Variable variable;
  bool of_pointee = false;  // whether what follows is about what a parameter points to
  uint32_t ignored;
  while (!trimmed(text).empty() && trimmed(text)[0] == '.') {
    const std::string_view word = take_word(text);
    if (is_one_of(word, kSpaces))
      variable.space = of_pointee ? variable.space : word;
    else if (word == ".align")
      (of_pointee ? ignored : variable.align) = static_cast<uint32_t>(number(take_word(text)));
    else if (word == ".extern")
      variable.external = true;
    else if (word == ".ptr")
      of_pointee = true;
    else if (const uint32_t bytes = bytes_of_type(word))
      variable.element_bytes = bytes;
    else if (word == ".v2" || word == ".v4")
      fail("vector variables are not supported: " + std::string(whole.substr(0, 100)));
    else if (!is_one_of(word, kLinkage))
      refuse();
  }
  const size_t bracket = std::min(text.find('['), text.size());
  variable.name = trimmed(text.substr(0, bracket));
  if (variable.name.empty() || variable.element_bytes == 0 || variable.name.find_first_of(" \t\n") != std::string::npos)
    refuse();
  variable.align = std::max(variable.align, variable.element_bytes);
  variable.bytes = variable.element_bytes * count_of(trimmed(text.substr(bracket)));
  return variable;
}

Initialized parse_initialized(std::string_view text) {
  const size_t equals = text.find('=');
  Initialized result = {parse_variable(text.substr(0, equals)), {}};
  const Variable& variable = result.variable;
  if (variable.external) fail("variable " + variable.name + " is defined elsewhere");
  result.bytes.resize(variable.bytes);
  if (equals == std::string_view::npos) return result;
  std::string_view values = trimmed(text.substr(equals + 1));
  if (values.starts_with('{')) values = values.substr(1, values.rfind('}') - 1);
  size_t at = 0;
  for (const std::string_view one : split(values)) {
    if (!is_number(one))
      fail("variable " + variable.name + " begins with " + std::string(one) + ", which is no number");
    if (at + variable.element_bytes > variable.bytes) fail("variable " + variable.name + " begins with too much");
    const uint64_t value = number(one);
    std::memcpy(result.bytes.data() + at, &value, variable.element_bytes);
    at += variable.element_bytes;
  }
  return result;
}

std::vector<RegisterDeclaration> parse_registers(std::string_view text) {
  take_word(text);
  const std::string_view type = take_word(text);
  const uint32_t bytes = bytes_of_type(type);
  if ((bytes == 0 && type != ".pred") || bytes > 8)
    fail("registers of type " + std::string(type) + " are not supported");
  std::vector<RegisterDeclaration> all;
  for (const std::string_view one : split(text)) {
    RegisterDeclaration declared = {one, {}, bytes == 0 ? kPredicate : static_cast<uint8_t>(std::max(bytes, 4u))};
    if (const size_t less = one.find('<'); less != std::string_view::npos) {
      declared.name = trimmed(one.substr(0, less));
      declared.count = static_cast<uint32_t>(number(one.substr(less + 1, one.find('>') - less - 1)));
    }
    all.push_back(declared);
  }
  return all;
}

SourceFile parse_file(std::string_view text) {
  take_word(text);
  const auto file = static_cast<uint32_t>(number(take_word(text)));
  const size_t first = text.find('"'), end = text.find('"', first + 1);
  if (end == std::string_view::npos) fail("no path in .file");
  return {file, std::string(text.substr(first + 1, end - first - 1))};
}

SourceLine parse_loc(std::string_view text) {
  take_word(text);
  const auto file = static_cast<uint32_t>(number(take_word(text)));
  return {file, static_cast<uint32_t>(number(take_word(text)))};
}

}  // namespace ptx
