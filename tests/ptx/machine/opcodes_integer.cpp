// PTX ISA 9.7.1 (Integer Arithmetic Instructions) and 9.7.8 (Logic and Shift Instructions).
#include <algorithm>
#include <bit>

#include "elementwise.h"

namespace ptx {
namespace {

__extension__ typedef __int128 Int128;
__extension__ typedef unsigned __int128 UInt128;

template <class T>
constexpr uint32_t kBits = 8 * sizeof(T);

// What holds the product of two T.
template <class T>
using Wide =
    std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, Int128, UInt128>,
                       std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>>;

template <class T>
constexpr Wide<T> product(T a, T b) {
  return Wide<T>(a) * Wide<T>(b);
}

// Sums and low products are the same for both signs. U is unsigned; its arithmetic is done in 64 bits, for products of
// 16 bits would overflow the int that C++ makes of them.
template <class U>
void add_arithmetic(const AddElementwise& add, const std::string& type) {
  add("add." + type, [](U a, U b) { return static_cast<U>(uint64_t{a} + b); });              // 9.7.1.1
  add("sub." + type, [](U a, U b) { return static_cast<U>(uint64_t{a} - b); });              // 9.7.1.2
  add("mul.lo." + type, [](U a, U b) { return static_cast<U>(uint64_t{a} * b); });           // 9.7.1.3
  add("mad.lo." + type, [](U a, U b, U c) { return static_cast<U>(uint64_t{a} * b + c); });  // 9.7.1.4
}

// What depends on the sign of T.
template <class T>
void add_signed_or_unsigned(const AddElementwise& add, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  add("mul.hi." + type, [](T a, T b) { return static_cast<T>(product(a, b) >> kBits<T>); });  // 9.7.1.3
  add("mad.hi." + type, [](T a, T b, T c) {                                                   // 9.7.1.4
    return static_cast<T>(static_cast<U>(product(a, b) >> kBits<T>) + static_cast<U>(c));
  });
  if constexpr (sizeof(T) < 8) {
    using W = Wide<T>;
    using UW = std::make_unsigned_t<W>;
    add("mul.wide." + type, [](T a, T b) { return product(a, b); });
    add("mad.wide." + type,
        [](T a, T b, W c) { return static_cast<W>(static_cast<UW>(product(a, b)) + static_cast<UW>(c)); });
  }
  // 9.7.1.8 div, 9.7.1.9 rem: by zero the result is unspecified. The least number by -1 is itself, remainder 0.
  add("div." + type, [](T a, T b) {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(U{0} - static_cast<U>(a));
    return static_cast<T>(a / b);
  });
  add("rem." + type, [](T a, T b) {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return T{0};
    return static_cast<T>(a % b);
  });
  add("min." + type, [](T a, T b) { return std::min(a, b); });  // 9.7.1.12
  add("max." + type, [](T a, T b) { return std::max(a, b); });  // 9.7.1.13
  // 9.7.8.9: by the width and more everything is shifted out, and only signs are left.
  add("shr." + type, [](T a, uint32_t by) {
    if (by < kBits<T>) return static_cast<T>(a >> by);
    return static_cast<T>(a < 0 ? -1 : 0);
  });
  if constexpr (std::is_signed_v<T>) {
    add("abs." + type, [](T a) { return a < 0 ? static_cast<U>(U{0} - static_cast<U>(a)) : static_cast<U>(a); });
    add("neg." + type, [](U a) { return static_cast<U>(U{0} - a); });  // 9.7.1.10 abs, 9.7.1.11 neg
  }
}

template <class U>
void add_logic(const AddElementwise& add, const std::string& type) {
  add("and." + type, [](U a, U b) { return static_cast<U>(a & b); });                                   // 9.7.8.1
  add("or." + type, [](U a, U b) { return static_cast<U>(a | b); });                                    // 9.7.8.2
  add("xor." + type, [](U a, U b) { return static_cast<U>(a ^ b); });                                   // 9.7.8.3
  add("not." + type, [](U a) { return static_cast<U>(~a); });                                           // 9.7.8.4
  add("shl." + type, [](U a, uint32_t by) { return by < kBits<U> ? static_cast<U>(a << by) : U{0}; });  // 9.7.8.8
  add("shr." + type, [](U a, uint32_t by) { return by < kBits<U> ? static_cast<U>(a >> by) : U{0}; });  // 9.7.8.9
}

template <class T>
void add_all_of(const AddElementwise& add, const std::string& bits) {
  using U = std::make_unsigned_t<T>;
  add_arithmetic<U>(add, "s" + bits);
  add_arithmetic<U>(add, "u" + bits);
  add_signed_or_unsigned<T>(add, "s" + bits);
  add_signed_or_unsigned<U>(add, "u" + bits);
  add_logic<U>(add, "b" + bits);
}

template <class U>
U reversed(U a) {
  U result = 0;
  for (uint32_t bit = 0; bit < kBits<U>; ++bit) result = static_cast<U>(result << 1 | (a >> bit & 1));
  return result;
}

// 9.7.1.19 bfe: `length` bits from `first` on, of which only the lowest bytes count. Bits past the end are the sign's,
// as are those above the field.
template <class T>
T extracted(T a, uint32_t first, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  first &= 255, length &= 255;
  if (length == 0) return 0;
  const T shifted = first < kBits<T> ? static_cast<T>(a >> first) : static_cast<T>(a < 0 ? -1 : 0);
  if (length >= kBits<T>) return shifted;
  const uint32_t above = kBits<T> - length;
  return static_cast<T>(static_cast<T>(static_cast<U>(shifted) << above) >> above);
}

// 9.7.1.20 bfi: the lowest `length` bits of a in place of those of b from `first` on.
template <class U>
U inserted(U a, U b, uint32_t first, uint32_t length) {
  first &= 255, length &= 255;
  if (first >= kBits<U> || length == 0) return b;
  const U field = (length < kBits<U> ? (U{1} << length) - 1 : ~U{0}) << first;
  return (b & ~field) | (a << first & field);
}

// 9.7.8.6 lop3: bit 4a + 2b + c of the table is the result where bits a, b and c meet.
uint32_t looked_up(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int row = 0; row < 8; ++row)
    if (table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return result;
}

void add_bits(const AddElementwise& add) {
  add("popc.b32", [](uint32_t a) { return static_cast<uint32_t>(std::popcount(a)); });  // 9.7.1.14
  add("popc.b64", [](uint64_t a) { return static_cast<uint32_t>(std::popcount(a)); });
  add("clz.b32", [](uint32_t a) { return static_cast<uint32_t>(std::countl_zero(a)); });  // 9.7.1.15
  add("clz.b64", [](uint64_t a) { return static_cast<uint32_t>(std::countl_zero(a)); });
  add("brev.b32", [](uint32_t a) { return reversed(a); });  // 9.7.1.18
  add("brev.b64", [](uint64_t a) { return reversed(a); });
  add("bfe.u32", [](uint32_t a, uint32_t b, uint32_t c) { return extracted(a, b, c); });
  add("bfe.s32", [](int32_t a, uint32_t b, uint32_t c) { return extracted(a, b, c); });
  add("bfe.u64", [](uint64_t a, uint32_t b, uint32_t c) { return extracted(a, b, c); });
  add("bfe.s64", [](int64_t a, uint32_t b, uint32_t c) { return extracted(a, b, c); });
  add("bfi.b32", [](uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return inserted(a, b, c, d); });
  add("bfi.b64", [](uint64_t a, uint64_t b, uint32_t c, uint32_t d) { return inserted(a, b, c, d); });
  add("lop3.b32", [](uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return looked_up(a, b, c, d); });

  // 9.7.8.7 shf: of the 64 bits b:a, the upper half shifted left or the lower half shifted right.
  struct Funnel {
    static uint64_t both(uint32_t a, uint32_t b) { return uint64_t{b} << 32 | a; }
    static uint32_t left(uint32_t a, uint32_t b, uint32_t by) { return static_cast<uint32_t>(both(a, b) << by >> 32); }
    static uint32_t right(uint32_t a, uint32_t b, uint32_t by) { return static_cast<uint32_t>(both(a, b) >> by); }
  };
  add("shf.l.wrap.b32", [](uint32_t a, uint32_t b, uint32_t c) { return Funnel::left(a, b, c & 31); });
  add("shf.l.clamp.b32", [](uint32_t a, uint32_t b, uint32_t c) { return Funnel::left(a, b, std::min(c, 32u)); });
  add("shf.r.wrap.b32", [](uint32_t a, uint32_t b, uint32_t c) { return Funnel::right(a, b, c & 31); });
  add("shf.r.clamp.b32", [](uint32_t a, uint32_t b, uint32_t c) { return Funnel::right(a, b, std::min(c, 32u)); });
}

// Of a whole warp's predicates at once.
template <class F>
void on_predicates(Warp& w, const Instruction& i, uint32_t mask) {
  put_predicate(w, i.d[0], mask, F()(predicate(w, i.s[0]), predicate(w, i.s[1])));
}
void not_predicate(Warp& w, const Instruction& i, uint32_t mask) {
  put_predicate(w, i.d[0], mask, ~predicate(w, i.s[0]));
}

}  // namespace

void add_integer(Opcodes& all) {
  const AddElementwise add = {all};
  add_all_of<int16_t>(add, "16");
  add_all_of<int32_t>(add, "32");
  add_all_of<int64_t>(add, "64");
  add_bits(add);
  all.add("and.pred", on_predicates<std::bit_and<uint32_t>>, {kPredicate, kPredicate});
  all.add("or.pred", on_predicates<std::bit_or<uint32_t>>, {kPredicate, kPredicate});
  all.add("xor.pred", on_predicates<std::bit_xor<uint32_t>>, {kPredicate, kPredicate});
  all.add("not.pred", not_predicate, {kPredicate});
}

}  // namespace ptx
