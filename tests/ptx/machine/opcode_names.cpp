#include "opcode_names.h"

#include <algorithm>

#include "opcodes.h"

namespace ptx {

OpcodeName::OpcodeName(std::string_view name) {
  for (size_t first = 0; first <= name.size();) {
    const size_t end = std::min(name.find('.', first), name.size());
    parts_.push_back(name.substr(first, end - first));
    first = end + 1;
  }
}

bool OpcodeName::has(std::string_view part) const { return std::ranges::find(parts_, part) != parts_.end(); }

bool OpcodeName::is_any_of(std::initializer_list<std::string_view> firsts) const {
  return std::ranges::find(firsts, first()) != firsts.end();
}

bool OpcodeName::has_result() const {
  if (first() == "mbarrier") return has("arrive") || has("arrive_drop") || has("test_wait") || has("try_wait");
  if (is_any_of({"bar", "barrier"})) return has("red");
  return !is_any_of({"st", "red", "fence", "membar", "nanosleep", "trap", "cp", "prefetch", "griddepcontrol"});
}

// The last type, but of a conversion, which ends with that of its source.
std::string_view OpcodeName::result_type() const {
  const size_t from_end = first() == "cvt" && parts_.size() > 2 ? 2 : 1;
  return parts_[parts_.size() - from_end];
}

uint8_t OpcodeName::result_bytes() const {
  const std::string_view type = result_type();
  if (first() == "setp" || type == "pred" || has("try_wait") || has("test_wait")) return kPredicate;
  if (is_any_of({"popc", "clz"})) return 4;
  if (has("wide")) return type.ends_with("32") ? 8 : 4;
  return type.ends_with("64") || type == "globaltimer" ? 8 : 4;
}

bool OpcodeName::is_result_signed() const { return result_type().starts_with('s'); }
bool OpcodeName::widens_result() const { return is_any_of({"ld", "cvt"}); }
bool OpcodeName::narrows_source() const { return is_any_of({"st", "cvt"}); }

Semantic OpcodeName::semantic() const {
  if (has("acquire")) return Semantic::kAcquire;
  if (has("release")) return Semantic::kRelease;
  if (has("relaxed") || has("volatile")) return Semantic::kRelaxed;
  if (first() == "mbarrier" && has("arrive")) return Semantic::kRelease;
  if (has("try_wait") || has("test_wait")) return Semantic::kAcquire;
  return is_any_of({"red", "atom"}) ? Semantic::kRelaxed : Semantic::kWeak;
}

Scope OpcodeName::scope() const {
  if (has("gpu") || has("sys")) return Scope::kGpu;
  if (has("cluster")) return Scope::kCluster;
  return has("cta") || first() == "mbarrier" ? Scope::kBlock : Scope::kGpu;
}

}  // namespace ptx
