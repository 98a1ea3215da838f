// How the emulator complains: with an exception that says which thread did what where.
#pragma once
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>

namespace emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "emulator: ";
  (message << ... << parts);
  throw Error(message.str());
}

// A line of a kernel. Two threads that meet at a barrier must have come to the same one.
struct Place {
  const char* file = nullptr;
  unsigned line = 0;

  Place() = default;
  Place(const std::source_location& at) : file(at.file_name()), line(at.line()) {}
  bool operator==(const Place& other) const { return line == other.line && std::string(file) == other.file; }
};

inline std::ostream& operator<<(std::ostream& out, const Place& place) {
  if (!place.file) return out << "nowhere";
  const std::string path = place.file;
  return out << path.substr(path.rfind('/') + 1) << ":" << place.line;
}

}  // namespace emulator
