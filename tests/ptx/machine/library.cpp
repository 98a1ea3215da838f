#include "library.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "options.h"

namespace ptx {
namespace {

// The text with other lines in place of some.
std::string changed(const std::string& text, const Changes& changes) {
  std::string made;
  uint32_t number = 0;
  for (size_t first = 0; first < text.size();) {
    const size_t end = std::min(text.find('\n', first), text.size());
    const auto change = changes.find(++number);
    made += change == changes.end() ? text.substr(first, end - first) : change->second;
    made += '\n';
    first = end + 1;
  }
  if (!changes.empty() && changes.rbegin()->first > number)
    fail("there is no line " + std::to_string(changes.rbegin()->first));
  return made;
}

}  // namespace

Library& library() {
  static Library& only = *new Library;  // host code may launch until the very end
  static const bool kRead = (only.read_environment(), true);
  static_cast<void>(kRead);
  return only;
}

// What a program that was linked with the machine has for it: it has no other way to ask.
void Library::read_environment() {
  if (const char* const order = std::getenv("FUSED_RNN_PTX_ORDER")) {
    options.seed = static_cast<uint32_t>(std::strtoul(order, nullptr, 10));
    options.order = static_cast<Order>(options.seed % kOrders);
  }
  const char* const files = std::getenv("FUSED_RNN_PTX");
  std::istringstream paths(files ? files : "");
  for (std::string path; std::getline(paths, path, ':');) read(path);
}

void Library::read(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  add(std::move(text).str());
}

void Library::add(std::string text) {
  texts_.push_back(std::make_unique<Text>());
  Text& t = *texts_.back();
  t.text = std::move(text);
  const std::string& all = t.text;
  std::vector<size_t> begins;  // of the line of each entry
  for (size_t at = all.find(".entry "); at != std::string::npos; at = all.find(".entry ", at + 1))
    begins.push_back(all.rfind('\n', at) + 1);
  t.header_end = begins.empty() ? all.size() : begins.front();
  t.footer_begin = std::min(all.size(), all.find("\n\t.file\t", begins.empty() ? 0 : begins.back()));
  for (size_t i = 0; i < begins.size(); ++i) {
    const size_t name = all.find(".entry ", begins[i]) + 7,
                 end = i + 1 < begins.size() ? begins[i + 1] : t.footer_begin;
    entries_[all.substr(name, all.find('(', name) - name)] = {&t, begins[i], end};
  }
}

std::string Library::text_of(const Entry& e) {
  const std::string& all = e.text->text;
  return all.substr(0, e.text->header_end) + all.substr(e.begin, e.end - e.begin) + all.substr(e.text->footer_begin);
}

Loaded Library::decode(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail("no kernel is called " + name);
  const auto changes = changes_.find(name);
  const std::string text = text_of(found->second);
  Loaded loaded = {parse(changes == changes_.end() ? text : changed(text, changes->second)), nullptr};
  loaded.kernel = loaded.module->kernels.at(name).get();
  return loaded;
}

Loaded& Library::kernel(const std::string& name) {
  auto& known = changes_.contains(name) ? changed_kernels_ : decoded_;
  auto found = known.find(name);
  if (found == known.end()) found = known.emplace(name, decode(name)).first;
  return found->second;
}

std::vector<std::string> Library::names() const {
  std::vector<std::string> all;
  for (const auto& [name, entry] : entries_) all.push_back(name);
  return all;
}

void Library::change(const std::string& kernel, Changes changes) {
  changes_[kernel] = std::move(changes);
  changed_kernels_.erase(kernel);
}

void Library::undo_changes() {
  changes_.clear();
  changed_kernels_.clear();
}

}  // namespace ptx
