// PTX ISA 9.7.9.6 (shfl.sync), 9.7.13 (vote.sync, activemask) and 9.7.19 (trap).
#include <bit>

#include "elementwise.h"

namespace ptx {
namespace {

enum class Shuffle { kIndex, kButterfly, kUp, kDown };

// Where a lane takes its value from, and whether that is inside of its segment.
struct From {
  uint32_t lane;
  bool inside;
};
template <Shuffle kHow>
From source_of(uint32_t lane, uint32_t b, uint32_t c) {
  b &= 31;
  const uint32_t clamp = c & 31, segment = c >> 8 & 31;
  const uint32_t first = lane & segment, bound = first | (clamp & ~segment);
  switch (kHow) {
    case Shuffle::kIndex: {
      const uint32_t from = first | (b & ~segment);
      return {from, from <= bound};
    }
    case Shuffle::kButterfly:
      return {lane ^ b, (lane ^ b) <= bound};
    case Shuffle::kUp:
      return {lane - b, static_cast<int>(lane - b) >= static_cast<int>(bound)};
    case Shuffle::kDown:
      return {lane + b, lane + b <= bound};
  }
}

// All lanes are computed, so that the loops are vectorised; those outside of the mask are dropped.
template <Shuffle kHow>
void shuffle(Warp& w, const Instruction& i, uint32_t mask) {
  const Lanes<uint32_t> all(w, i.s[0]), b(w, i.s[1]), c(w, i.s[2]);
  uint32_t sources[kLanes], values[kLanes], inside = 0, absent = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    const From from = source_of<kHow>(lane, b.get(static_cast<int>(lane)), c.get(static_cast<int>(lane)));
    sources[lane] = from.inside ? from.lane : lane;
    inside |= uint32_t{from.inside} << lane;
    absent |= (~mask >> sources[lane] & 1) << lane;
  }
  if (absent &= mask)
    fail_at(w, i, "a shuffle from lane " + std::to_string(sources[std::countr_zero(absent)]) + ", which takes no part");
  for (uint32_t lane = 0; lane < kLanes; ++lane) values[lane] = all.get(static_cast<int>(sources[lane]));
  if (i.d[0] != kNone) for_lanes(mask, [&](int lane) { put(w, i.d[0], lane, values[lane]); });
  if (i.d[1] != kNone) put_predicate(w, i.d[1], mask, inside);
}

template <bool (*kDecide)(uint32_t votes, uint32_t mask)>
void vote(Warp& w, const Instruction& i, uint32_t mask) {
  put_predicate(w, i.d[0], mask, kDecide(predicate(w, i.s[0]) & mask, mask) ? ~0u : 0);
}
bool is_any(uint32_t votes, uint32_t) { return votes != 0; }
bool are_all(uint32_t votes, uint32_t mask) { return votes == mask; }
bool is_uniform(uint32_t votes, uint32_t mask) { return votes == 0 || votes == mask; }

void ballot(Warp& w, const Instruction& i, uint32_t mask) {
  const uint32_t votes = predicate(w, i.s[0]) & mask;
  for_lanes(mask, [&](int lane) { put(w, i.d[0], lane, votes); });
}

void active_mask(Warp& w, const Instruction& i, uint32_t mask) {
  for_lanes(mask, [&](int lane) { put(w, i.d[0], lane, mask); });
}

void trap(Warp& w, const Instruction& i, uint32_t) { fail_at(w, i, "a trap"); }
void fail_assertion(Warp& w, const Instruction& i, uint32_t) { fail_at(w, i, "a device assertion"); }

}  // namespace

void add_warp(Opcodes& all) {
  all.add("shfl.sync.idx.b32", shuffle<Shuffle::kIndex>, {4, 4, 4, 4}, Kind::kWarp);
  all.add("shfl.sync.bfly.b32", shuffle<Shuffle::kButterfly>, {4, 4, 4, 4}, Kind::kWarp);
  all.add("shfl.sync.up.b32", shuffle<Shuffle::kUp>, {4, 4, 4, 4}, Kind::kWarp);
  all.add("shfl.sync.down.b32", shuffle<Shuffle::kDown>, {4, 4, 4, 4}, Kind::kWarp);
  all.add("vote.sync.any.pred", vote<is_any>, {kPredicate, 4}, Kind::kWarp);
  all.add("vote.sync.all.pred", vote<are_all>, {kPredicate, 4}, Kind::kWarp);
  all.add("vote.sync.uni.pred", vote<is_uniform>, {kPredicate, 4}, Kind::kWarp);
  all.add("vote.sync.ballot.b32", ballot, {kPredicate, 4}, Kind::kWarp);
  all.add("activemask.b32", active_mask, {});
  all.add("trap", trap, {});
  all.add("trap.assert", fail_assertion, {});  // what the parser makes of a call of __assertfail
}

}  // namespace ptx
