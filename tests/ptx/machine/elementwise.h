// Opcodes that do the same in every lane, made from a function of one lane's values:
//   add("shl.b32", [](uint32_t a, uint32_t b) { return b < 32 ? a << b : 0; })
// Its arguments are the sources, its result is the destination. The type of each says how wide its register is; a bool
// is a predicate. The function must have no state and is inlined into a loop over the lanes, which can be vectorised.
#pragma once
#include <string>
#include <utility>

#include "opcodes.h"
#include "registers.h"

namespace ptx {

template <class T>
constexpr int register_bytes() {
  if constexpr (std::is_same_v<T, bool>)
    return kPredicate;
  else
    return sizeof(T) == 8 ? 8 : 4;
}

// Of the lanes in `mask`.
inline void put_predicate(Warp& w, uint32_t place, uint32_t mask, uint32_t bits) {
  uint32_t& to = predicate(w, place);
  to = (to & ~mask) | (bits & mask);
}

// A register in all lanes. It keeps the address itself: stores through get and put could change Warp::file for all the
// compiler knows, and no loop would be vectorised.
template <class T>
class Lanes {
 public:
  Lanes(const Warp& w, uint32_t place) : values_(reinterpret_cast<Value*>(w.file + place)) {}
  T get(int lane) const { return static_cast<T>(values_[lane]); }
  void put(int lane, T value) const {
    if constexpr (sizeof(T) >= 4)
      values_[lane] = value;
    else
      values_[lane] = static_cast<std::make_unsigned_t<T>>(value);
  }

 private:
  using Value = std::conditional_t<sizeof(T) >= 4, T, uint32_t>;
  Value* values_;
};
template <>
class Lanes<bool> {
 public:
  Lanes(const Warp& w, uint32_t place) : bits_(predicate(w, place)) {}
  bool get(int lane) const { return bits_ >> lane & 1; }

 private:
  uint32_t bits_;
};

template <class F, class Signature>
struct ElementwiseOf;

template <class F, class D, class... A>
struct ElementwiseOf<F, D (F::*)(A...) const> {
  static void run(Warp& w, const Instruction& i, uint32_t mask) { expand(w, i, mask, std::index_sequence_for<A...>{}); }
  // `how` may do more than run(), with the same operands.
  static void add_to(Opcodes& all, const std::string& name, Execute how = run) {
    all.add(name, how, {register_bytes<A>()...});
  }

 private:
  template <size_t... k>
  static void expand(Warp& w, const Instruction& i, uint32_t mask, std::index_sequence<k...>) {
    apply(w, i.d[0], mask, Lanes<A>(w, i.s[k])...);
  }
  static void apply(Warp& w, uint32_t d, uint32_t mask, const Lanes<A>... sources) {
    if constexpr (std::is_same_v<D, bool>) {
      uint32_t bits = 0;  // of all lanes: those outside of the mask are dropped
      for (int lane = 0; lane < 32; ++lane) bits |= uint32_t{F()(sources.get(lane)...)} << lane;
      put_predicate(w, d, mask, bits);
    } else {
      const Lanes<D> to(w, d);
      for_lanes(mask, [=](int lane) { to.put(lane, F()(sources.get(lane)...)); });
    }
  }
};

template <class F>
using Elementwise = ElementwiseOf<F, decltype(&F::operator())>;

// Adds elementwise opcodes to a table.
struct AddElementwise {
  Opcodes& all;

  template <class F>
  void operator()(const std::string& name, F) const {
    static_assert(std::is_empty_v<F>);
    Elementwise<F>::add_to(all, name);
  }
};

}  // namespace ptx
