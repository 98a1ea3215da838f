#include "library.h"

#include <algorithm>

namespace ptx {
namespace {

// Replaces; the number of places.
uint64_t apply(const Change& change, std::string& text) {
  uint64_t made = 0;
  int number = 0;
  for (size_t at = text.find(change.from); at != std::string::npos; ++number) {
    const bool now = change.which < 0 || change.which == number;
    if (now) text.replace(at, change.from.size(), change.to), ++made;
    at = text.find(change.from, at + (now ? change.to : change.from).size());
  }
  return made;
}

}  // namespace

Library& library() {
  static Library only;
  return only;
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
    const size_t name = all.find(".entry ", begins[i]) + 7, end = i + 1 < begins.size() ? begins[i + 1] : t.footer_begin;
    entries_[all.substr(name, all.find('(', name) - name)] = {&t, begins[i], end};
  }
}

std::string Library::text_of(const Entry& e) {
  const std::string& all = e.text->text;
  return all.substr(0, e.text->header_end) + all.substr(e.begin, e.end - e.begin) + all.substr(e.text->footer_begin);
}

Loaded Library::decode(const std::string& name, const std::vector<const Change*>& changes) {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail("no kernel is called " + name);
  std::string text = text_of(found->second);
  for (const Change* change : changes) changed_ += apply(*change, text);
  Loaded loaded = {parse(std::move(text)), nullptr};
  loaded.kernel = loaded.module->kernels.at(name).get();
  return loaded;
}

Loaded& Library::kernel(const std::string& name) {
  std::vector<const Change*> changes;
  for (const Change& change : changes_)
    if (name.find(change.kernel) != std::string::npos) changes.push_back(&change);
  auto& known = changes.empty() ? decoded_ : changed_kernels_;
  auto found = known.find(name);
  if (found == known.end()) found = known.emplace(name, decode(name, changes)).first;
  return found->second;
}

std::vector<std::string> Library::names() const {
  std::vector<std::string> all;
  for (const auto& [name, entry] : entries_) all.push_back(name);
  return all;
}

void Library::change(Change change) {
  changes_.push_back(std::move(change));
  changed_kernels_.clear();
}

void Library::undo_changes() {
  changes_.clear();
  changed_kernels_.clear();
  changed_ = 0;
}

}  // namespace ptx
