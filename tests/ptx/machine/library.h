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

// Lines of a kernel's text, by number from 1, and what stands there instead.
using Changes = std::map<uint32_t, std::string>;

struct Loaded {
  std::unique_ptr<Module> module;
  Kernel* kernel;
};

class Library {
 public:
  // Adds the kernels of a text, such as nvcc makes of one .cu file.
  void add(std::string text);
  void read(const std::string& path);
  Loaded& kernel(const std::string& name);
  std::vector<std::string> names() const;

  // For all launches from now on, in place of earlier changes to it. Other kernels stay as they are, and keep their
  // counts.
  void change(const std::string& kernel, Changes changes);
  void undo_changes();

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

  friend Library& library();
  void read_environment();
  static std::string text_of(const Entry& entry);
  Loaded decode(const std::string& name) const;

  std::vector<std::unique_ptr<Text>> texts_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, Loaded> decoded_, changed_kernels_;
  std::map<std::string, Changes> changes_;
};

// The only one. At first it has the texts of the files that FUSED_RNN_PTX names, with ":" between them;
// FUSED_RNN_PTX_ORDER is a number by which options.order, all of them in turn, and options.seed are chosen.
Library& library();

}  // namespace ptx
