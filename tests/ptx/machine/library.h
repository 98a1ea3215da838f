// The PTX that there is, by the names of its kernels: decoded when a kernel is first launched, with changes made to its
// text where tests ask for them.
#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

// In the text of kernels whose names contain `kernel`.
struct Change {
  std::string kernel, from, to;
  int which;  // of the places where `from` stands; -1: all
};

struct Loaded {
  std::unique_ptr<Module> module;
  Kernel* kernel;
};

class Library {
 public:
  // Adds the kernels of a text, such as nvcc makes of one .cu file.
  void add(std::string text);
  Loaded& kernel(const std::string& name);
  std::vector<std::string> names() const;

  // For all launches from now on. Kernels that it does not concern stay as they are, and keep their counts.
  void change(Change change);
  void undo_changes();
  uint64_t changed() const { return changed_; }  // places, so far

  // What has been decoded and not changed.
  const std::map<std::string, Loaded>& decoded() const { return decoded_; }

 private:
  // Where an entry stands among the lines of its text. All entries share what is declared before the first one and,
  // behind the last one, names of source files.
  struct Text {
    std::string text;
    size_t header_end = 0, footer_begin = 0;
  };
  struct Entry {
    const Text* text;
    size_t begin, end;
  };

  static std::string text_of(const Entry& entry);
  Loaded decode(const std::string& name, const std::vector<const Change*>& changes);

  std::vector<std::unique_ptr<Text>> texts_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, Loaded> decoded_, changed_kernels_;
  std::vector<Change> changes_;
  uint64_t changed_ = 0;
};

Library& library();

}  // namespace ptx
