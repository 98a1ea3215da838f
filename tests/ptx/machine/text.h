// PTX as text: pieces of it, and a place in it that knows its line.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

std::string_view trimmed(std::string_view text);

// At commas outside of braces, brackets and parentheses.
std::vector<std::string_view> split(std::string_view text);

// The first word of `text`, which is removed from it.
std::string_view take_word(std::string_view& text);

// Numbers as PTX writes them (4.5 Constants): decimal, 0x, octal, 0b, 0f and 0d. Throws for anything else.
uint64_t number(std::string_view text);
bool is_number(std::string_view text);

// Comments become spaces, so that everything keeps its line.
void blank_comments(std::string& text);

// A place in a text that is read from its beginning to its end.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  uint32_t line() const { return line_; }
  bool at_end();  // nothing but white space follows
  bool starts_with(std::string_view what) const { return text_.substr(at_).starts_with(what); }
  std::string_view rest() const { return text_.substr(at_); }
  void skip_space();
  bool skip(std::string_view what);           // whether it was there
  std::string_view until(const char* stops);  // up to any of these, exclusively; throws when none follows
  std::string_view through(char stop);        // the same, and past it
  std::string_view rest_of_line();
  std::string_view word() const;  // that follows, up to white space
  std::string_view label();       // past "label:"; empty when something else follows

 private:
  void move_to(size_t at);

  std::string_view text_;
  size_t at_ = 0;
  uint32_t line_ = 1;
};

}  // namespace ptx
