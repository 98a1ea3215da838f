// PTX ISA 9.7.9.21 (cvt), 9.7.9.20 (cvta).
#include <cmath>
#include <limits>
#include <utility>

#include "elementwise.h"
#include "formats.h"
#include "rounding.h"

namespace ptx {
namespace {

// An integer as its register holds it: those of fewer than 32 bits are extended by their sign or by zeros, for the
// register may be wider than the type (9.4.1).
template <class T>
auto in_register(T value) {
  return static_cast<std::conditional_t<sizeof(T) == 8, T, uint32_t>>(value);
}

template <class To, class From>
To clamped(From value) {
  using Limits = std::numeric_limits<To>;
  if (std::cmp_less(value, Limits::min())) return Limits::min();
  if (std::cmp_greater(value, Limits::max())) return Limits::max();
  return static_cast<To>(value);
}

// A rounded number; beyond the limits it is clamped. A NaN becomes 0, or the uppermost bit alone where either side has
// 64 bits.
template <class To, class From>
To integer_of(From value) {
  using Limits = std::numeric_limits<To>;
  if (value != value) {
    if (sizeof(To) < 8 && sizeof(From) < 8) return 0;
    return static_cast<To>(std::make_unsigned_t<To>{1} << (8 * sizeof(To) - 1));
  }
  if (value <= static_cast<From>(Limits::min())) return Limits::min();
  if (value >= static_cast<From>(Limits::max())) return Limits::max();
  return static_cast<To>(value);
}

template <class T>
struct Type {
  const char* name;
};

// f(Type<T>) for each integer type.
template <class F>
void for_integers(F f) {
  f(Type<uint8_t>{"u8"}), f(Type<int8_t>{"s8"});
  f(Type<uint16_t>{"u16"}), f(Type<int16_t>{"s16"});
  f(Type<uint32_t>{"u32"}), f(Type<int32_t>{"s32"});
  f(Type<uint64_t>{"u64"}), f(Type<int64_t>{"s64"});
}

// Ways of rounding to whole numbers; f(name, function of a float or double).
template <class F>
void for_whole_numbers(F f) {
  f("rni", [](auto a) { return std::nearbyint(a); });
  f("rzi", [](auto a) { return std::trunc(a); });
  f("rmi", [](auto a) { return std::floor(a); });
  f("rpi", [](auto a) { return std::ceil(a); });
}

void add_between_integers(const AddElementwise& add) {
  for_integers([&]<class To>(Type<To> to) {
    for_integers([&]<class From>(Type<From> from) {
      const std::string types = std::string(to.name) + "." + from.name;
      add("cvt." + types, [](From a) { return in_register(static_cast<To>(a)); });
      add("cvt.sat." + types, [](From a) { return in_register(clamped<To>(a)); });
    });
  });
}

template <class T>
void add_with_integers(const AddElementwise& add, const std::string& type) {
  for_integers([&]<class Integer>(Type<Integer> integer) {
    add("cvt.rn." + type + "." + integer.name, [](Integer a) { return static_cast<T>(a); });
    for_whole_numbers([&]<class Round>(const std::string& rounding, Round) {
      add("cvt." + rounding + "." + integer.name + "." + type,
          [](T a) { return in_register(integer_of<Integer>(Round()(a))); });
    });
  });
}

template <class T>
void add_to_itself(const AddElementwise& add, const std::string& type) {
  for_whole_numbers([&]<class Round>(const std::string& rounding, Round) {
    add("cvt." + rounding + "." + type + "." + type, [](T a) { return Round()(a); });
  });
  add("cvt.sat." + type + "." + type, [](T a) { return a > 0 ? (a < 1 ? a : T{1}) : T{0}; });  // of a NaN 0
}

void add_between_floats(Opcodes& all) {
  const AddElementwise add = {all};
  add_roundings(all, "cvt", "f32.f64", [](double a) { return static_cast<float>(a); });
  add("cvt.f64.f32", [](float a) { return static_cast<double>(a); });
  add("cvt.f32.f16", [](uint16_t a) { return float_of_half(a); });
  add("cvt.f32.bf16", [](uint16_t a) { return float_of_bfloat16(a); });
  add("cvt.rn.f16.f32", [](float a) { return half_of(a); });
  add("cvt.rn.bf16.f32", [](float a) { return bfloat16_of(a); });
  add("cvt.rna.tf32.f32", [](float a) { return tf32_of(a); });
  // The first source becomes the upper half.
  add("cvt.rn.f16x2.f32", [](float a, float b) { return uint32_t{half_of(a)} << 16 | half_of(b); });
  add("cvt.rn.bf16x2.f32", [](float a, float b) { return uint32_t{bfloat16_of(a)} << 16 | bfloat16_of(b); });
}

// Generic addresses of global and constant memory are its own; those of shared memory lie in a window.
void add_addresses(const AddElementwise& add) {
  for (const std::string space : {"global", "const"})
    for (const std::string to : {"", "to."}) add("cvta." + to + space + ".u64", [](uint64_t a) { return a; });
  add("cvta.shared.u64", [](uint64_t a) { return a + kSharedWindow; });
  add("cvta.to.shared.u64", [](uint64_t a) { return a - kSharedWindow; });
}

}  // namespace

void add_conversions(Opcodes& all) {
  const AddElementwise add = {all};
  add_between_integers(add);
  add_with_integers<float>(add, "f32");
  add_with_integers<double>(add, "f64");
  add_to_itself<float>(add, "f32");
  add_to_itself<double>(add, "f64");
  add_between_floats(all);
  add_addresses(add);
}

}  // namespace ptx
