#include "text.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "program.h"

namespace ptx {
namespace {

constexpr const char* kSpace = " \t\r\n";

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  int depth = 0;
  size_t first = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    if (c != ',' || depth > 0) continue;
    parts.push_back(trimmed(text.substr(first, at - first)));
    first = at + 1;
  }
  if (const std::string_view last = trimmed(text.substr(first)); !last.empty()) parts.push_back(last);
  return parts;
}

std::string_view take_word(std::string_view& text) {
  text = trimmed(text);
  const std::string_view word = text.substr(0, text.find_first_of(kSpace));
  text = trimmed(text.substr(word.size()));
  return word;
}

bool is_number(std::string_view text) {
  return !text.empty() && (is_digit(text[0]) || (text[0] == '-' && text.size() > 1 && is_digit(text[1])));
}

uint64_t number(std::string_view text) {
  std::string_view digits = text;
  const bool negative = !digits.empty() && digits[0] == '-';
  if (negative) digits.remove_prefix(1);
  int base = 10;
  if (digits.size() > 1 && digits[0] == '0') {
    switch (std::tolower(static_cast<unsigned char>(digits[1]))) {
      case 'x':
      case 'f':  // the bits of a float
      case 'd':  // those of a double
        base = 16;
        break;
      case 'b':
        base = 2;
        break;
      default:
        base = 8;
    }
    digits.remove_prefix(base == 8 ? 1 : 2);
  }
  if (digits.ends_with('U')) digits.remove_suffix(1);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc{} || end != digits.data() + digits.size()) fail("not a number: " + std::string(text));
  return negative ? 0 - value : value;
}

void blank_comments(std::string& text) {
  const auto blank = [&](size_t from, size_t to) {
    for (; from < to; ++from)
      if (text[from] != '\n') text[from] = ' ';
  };
  for (size_t at = 0; (at = text.find_first_of("\"/", at)) != std::string::npos;) {
    size_t end = at + 1;
    if (text[at] == '"') {
      end = text.find('"', at + 1);
      if (end == std::string::npos) fail("a string without an end");
      ++end;
    } else if (text.compare(at, 2, "//") == 0) {
      end = std::min(text.find('\n', at), text.size());
      blank(at, end);
    } else if (text.compare(at, 2, "/*") == 0) {
      end = text.find("*/", at + 2);
      if (end == std::string::npos) fail("a comment without an end");
      end += 2;
      blank(at, end);
    }
    at = end;
  }
}

void Reader::move_to(size_t at) {
  line_ += static_cast<uint32_t>(
      std::count(text_.begin() + static_cast<long>(at_), text_.begin() + static_cast<long>(at), '\n'));
  at_ = at;
}

void Reader::skip_space() {
  while (at_ < text_.size() && is_space(text_[at_])) line_ += text_[at_++] == '\n';
}

bool Reader::at_end() {
  skip_space();
  return at_ == text_.size();
}

bool Reader::skip(std::string_view what) {
  if (!starts_with(what)) return false;
  move_to(at_ + what.size());
  return true;
}

std::string_view Reader::until(const char* stops) {
  const size_t first = at_, end = text_.find_first_of(stops, at_);
  if (end == std::string_view::npos) fail("the text ends too early");
  move_to(end);
  return text_.substr(first, end - first);
}

std::string_view Reader::through(char stop) {
  const char stops[] = {stop, '\0'};
  const std::string_view part = until(stops);
  move_to(at_ + 1);
  return part;
}

std::string_view Reader::rest_of_line() {
  const size_t first = at_;
  move_to(std::min(text_.find('\n', at_), text_.size()));
  return text_.substr(first, at_ - first);
}

std::string_view Reader::word() const {
  const size_t end = std::min(text_.find_first_of(kSpace, at_), text_.size());
  return text_.substr(at_, end - at_);
}

std::string_view Reader::label() {
  const size_t end = text_.find_first_of(":; \t\r\n", at_);
  if (end == std::string_view::npos || text_[end] != ':' || text_.substr(end, 2) == "::") return {};
  const std::string_view name = text_.substr(at_, end - at_);
  move_to(end + 1);
  return name;
}

}  // namespace ptx
