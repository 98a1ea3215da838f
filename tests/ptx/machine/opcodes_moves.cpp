// PTX ISA 9.7.9.3 and 9.7.9.4 (mov), 9.7.9.7 (prmt).
#include "elementwise.h"

namespace ptx {
namespace {

template <class T>
void add_move(const AddElementwise& add, const std::string& type) {
  add("mov." + type, [](T a) { return a; });
}

void move_predicate(Warp& w, const Instruction& i, uint32_t mask) {
  put_predicate(w, i.d[0], mask, predicate(w, i.s[0]));
}

// mov d, {a, b, ...}: the first is the lowest part. Parts of fewer than 32 bits have registers of 32.
template <int kParts, class Whole>
void pack(Warp& w, const Instruction& i, uint32_t mask) {
  constexpr int kBits = 8 * sizeof(Whole) / kParts;
  constexpr Whole kPart = ~Whole{0} >> (8 * sizeof(Whole) - kBits);
  for_lanes(mask, [&](int lane) {
    Whole whole = 0;
    for (int part = 0; part < kParts; ++part)
      whole |= (Whole{get<uint32_t>(w, i.s[part], lane)} & kPart) << (kBits * part);
    put(w, i.d[0], lane, whole);
  });
}

// mov {a, b, ...}, s, of which a part may be _.
template <int kParts, class Whole>
void unpack(Warp& w, const Instruction& i, uint32_t mask) {
  constexpr int kBits = 8 * sizeof(Whole) / kParts;
  constexpr Whole kPart = ~Whole{0} >> (8 * sizeof(Whole) - kBits);
  for_lanes(mask, [&](int lane) {
    const auto whole = get<Whole>(w, i.s[0], lane);
    for (int part = 0; part < kParts; ++part)
      if (i.d[part] != kNone) put(w, i.d[part], lane, static_cast<uint32_t>(whole >> (kBits * part) & kPart));
  });
}

template <int kParts, class Whole>
void add_parts(Opcodes& all, const std::string& type) {
  const std::string parts = std::to_string(kParts) + "." + type;
  constexpr int kOther = kParts == 4 ? 4 : 0;
  all.add("mov.pack" + parts, pack<kParts, Whole>, {4, 4, kOther, kOther});
  all.add("mov.unpack" + parts, unpack<kParts, Whole>, {sizeof(Whole)});
}

// 10.28 %globaltimer, 10.26 %clock64: time goes by with every instruction of the grid.
void read_clock(Warp& w, const Instruction& i, uint32_t mask) {
  const uint64_t now = w.block->grid->executed;
  for_lanes(mask, [&](int lane) { put(w, i.d[0], lane, now); });
}

// Each of the result's bytes is one of the eight of b:a, or that one's sign.
uint32_t permuted(uint32_t a, uint32_t b, uint32_t selectors) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t selector = selectors >> (4 * k);
    const uint32_t byte = bytes >> (8 * (selector & 7)) & 255;
    const uint32_t sign = byte & 128 ? 255 : 0;
    result |= (selector & 8 ? sign : byte) << (8 * k);
  }
  return result;
}

}  // namespace

// The parser makes names of its own of what mov's operands say: mov.pack4.b64, mov.unpack2.b32, mov.globaltimer.
void add_moves(Opcodes& all) {
  const AddElementwise add = {all};
  for (const std::string type : {"b", "s", "u"}) {
    add_move<uint16_t>(add, type + "16");
    add_move<uint32_t>(add, type + "32");
    add_move<uint64_t>(add, type + "64");
  }
  add_move<uint32_t>(add, "f32");
  add_move<uint64_t>(add, "f64");
  all.add("mov.pred", move_predicate, {kPredicate});
  add_parts<2, uint32_t>(all, "b32");
  add_parts<4, uint32_t>(all, "b32");
  add_parts<2, uint64_t>(all, "b64");
  add_parts<4, uint64_t>(all, "b64");
  all.add("mov.globaltimer", read_clock, {});
  all.add("mov.clock64", read_clock, {});
  add("prmt.b32", [](uint32_t a, uint32_t b, uint32_t c) { return permuted(a, b, c); });
}

}  // namespace ptx
