// PTX ISA 9.7.6 (Comparison and Selection Instructions).
#include <functional>

#include "elementwise.h"

namespace ptx {
namespace {

// setp p|q, a, b {, c}: p of a lane is whether a and b compare so, q whether they do not; each combined with c.
template <class T, class Compare, class Combine>
void set_predicate(Warp& w, const Instruction& i, uint32_t mask) {
  const Lanes<T> a(w, i.s[0]), b(w, i.s[1]);
  uint32_t is = 0;
  for (int lane = 0; lane < 32; ++lane) is |= uint32_t{Compare()(a.get(lane), b.get(lane))} << lane;
  uint32_t is_not = ~is;
  if constexpr (!std::is_void_v<Combine>) {
    const uint32_t c = predicate(w, i.s[2]);
    is = Combine()(is, c);
    is_not = Combine()(is_not, c);
  }
  if (i.d[0] != kNone) put_predicate(w, i.d[0], mask, is);
  if (i.d[1] != kNone) put_predicate(w, i.d[1], mask, is_not);
}

// Adds setp.NAME.TYPE and its forms with a third operand.
template <class T>
struct AddComparisons {
  Opcodes& all;
  std::string type;

  template <class Compare>
  void operator()(const std::string& name, Compare) const {
    constexpr int z = register_bytes<T>();
    all.add("setp." + name + "." + type, set_predicate<T, Compare, void>, {z, z});
    all.add("setp." + name + ".and." + type, set_predicate<T, Compare, std::bit_and<uint32_t>>, {z, z, kPredicate});
    all.add("setp." + name + ".or." + type, set_predicate<T, Compare, std::bit_or<uint32_t>>, {z, z, kPredicate});
    all.add("setp." + name + ".xor." + type, set_predicate<T, Compare, std::bit_xor<uint32_t>>, {z, z, kPredicate});
  }
};

template <class T>
void add_equal(Opcodes& all, const std::string& type) {
  const AddComparisons<T> add = {all, type};
  add("eq", [](T a, T b) { return a == b; });
  add("ne", [](T a, T b) { return a != b; });
}
template <class T>
void add_order(Opcodes& all, const std::string& type) {
  const AddComparisons<T> add = {all, type};
  add("lt", [](T a, T b) { return a < b; });
  add("le", [](T a, T b) { return a <= b; });
  add("gt", [](T a, T b) { return a > b; });
  add("ge", [](T a, T b) { return a >= b; });
  if constexpr (std::is_unsigned_v<T>) {  // the same by other names
    add("lo", [](T a, T b) { return a < b; });
    add("ls", [](T a, T b) { return a <= b; });
    add("hi", [](T a, T b) { return a > b; });
    add("hs", [](T a, T b) { return a >= b; });
  }
}

// Comparisons with NaNs are false, or true where the name ends with u.
template <class T>
void add_unordered(Opcodes& all, const std::string& type) {
  const AddComparisons<T> add = {all, type};
  add("eq", [](T a, T b) { return a == b; });
  add("ne", [](T a, T b) { return a < b || a > b; });
  add("equ", [](T a, T b) { return !(a < b || a > b); });
  add("neu", [](T a, T b) { return a != b; });
  add("ltu", [](T a, T b) { return !(a >= b); });
  add("leu", [](T a, T b) { return !(a > b); });
  add("gtu", [](T a, T b) { return !(a <= b); });
  add("geu", [](T a, T b) { return !(a < b); });
  add("num", [](T a, T b) { return a == a && b == b; });
  add("nan", [](T a, T b) { return a != a || b != b; });
}

template <class T>
void add_selection(Opcodes& all, const std::string& type) {  // 9.7.6.3 selp
  AddElementwise{all}("selp." + type, [](T a, T b, bool first) {
    const auto mask = static_cast<T>(0 - T{first});  // a branch would keep the loop from being vectorised
    return static_cast<T>((a & mask) | (b & ~mask));
  });
}

template <class Unsigned, class Signed>
void add_integers(Opcodes& all, const std::string& bits) {
  for (const char* type : {"b", "s", "u"}) {
    add_equal<Unsigned>(all, type + bits);
    add_selection<Unsigned>(all, type + bits);
  }
  add_order<Signed>(all, "s" + bits);
  add_order<Unsigned>(all, "u" + bits);
}

}  // namespace

void add_comparisons(Opcodes& all) {
  add_integers<uint16_t, int16_t>(all, "16");
  add_integers<uint32_t, int32_t>(all, "32");
  add_integers<uint64_t, int64_t>(all, "64");
  add_order<float>(all, "f32");
  add_unordered<float>(all, "f32");
  add_selection<uint32_t>(all, "f32");
  add_order<double>(all, "f64");
  add_unordered<double>(all, "f64");
  add_selection<uint64_t>(all, "f64");
}

}  // namespace ptx
