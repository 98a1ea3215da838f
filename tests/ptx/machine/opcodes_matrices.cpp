// PTX ISA 9.7.14.5.14 (mma): products of 16 x K and K x 8 matrices that lie in the registers of a warp.
//
// With g = lane / 4 and q = lane % 4, the registers of a lane hold, of (row, column):
//   16 x 16 of 16 bits (9.7.14.5.8)  a0 (g, 2q)      a1 (g + 8, 2q)      a2 (g, 2q + 8)  a3 (g + 8, 2q + 8)
//   16 x 8 of 16 bits                b0 (2q, g)      b1 (2q + 8, g)
//   16 x 8 of tf32 (9.7.14.5.7)      a0 (g, q)       a1 (g + 8, q)       a2 (g, q + 4)   a3 (g + 8, q + 4)
//   8 x 8 of tf32                    b0 (q, g)       b1 (q + 4, g)
//   16 x 8 of float                  c0 (g, 2q)      c1 (g, 2q + 1)      c2 (g + 8, 2q)  c3 (g + 8, 2q + 1)
// Of 16 bits a register holds two: the upper half is the next column of A, the next row of B. So for all formats a
// register of the four lanes of a g is a run of half a row of A, or of half a column of B.
#include "elementwise.h"
#include "formats.h"
#include "rough.h"

namespace ptx {
namespace {

constexpr int kRows = 16, kColumns = 8, kGroups = 8;

struct BFloat16 {
  using Element = uint16_t;
  static float value(Element bits) { return float_of_bfloat16(bits); }
};
struct Half {
  using Element = uint16_t;
  static float value(Element bits) { return float_of_half(bits); }
};
struct Tf32 {
  using Element = uint32_t;
  static float value(Element bits) { return float_of_tf32(bits); }
};

// A row of B or of the sums, as a vector of the compiler's.
using Columns [[gnu::vector_size(kColumns * sizeof(double))]] = double;

// Float sums, kept in double: products of these formats are exact there.
template <class Format>
struct Matrices {
  using Element = typename Format::Element;
  static constexpr int kRun = 16 / sizeof(Element), kDepth = 2 * kRun;
  double a[kRows][kDepth];
  Columns b[kDepth], c[kRows];

  void read(const Warp& w, const Instruction& i) {
    for (int r = 0; r < 4; ++r) {
      const auto* const elements = reinterpret_cast<const Element*>(w.file + i.s[r]);
      for (int g = 0; g < kGroups; ++g)
        for (int k = 0; k < kRun; ++k) a[g + 8 * (r & 1)][kRun * (r >> 1) + k] = Format::value(elements[kRun * g + k]);
    }
    for (int r = 0; r < 2; ++r) {
      const auto* const elements = reinterpret_cast<const Element*>(w.file + i.s[4 + r]);
      for (int g = 0; g < kGroups; ++g)
        for (int k = 0; k < kRun; ++k) b[kRun * r + k][g] = Format::value(elements[kRun * g + k]);
    }
    for (int r = 0; r < 4; ++r)
      for (int lane = 0; lane < 32; ++lane)
        c[lane / 4 + 8 * (r >> 1)][2 * (lane % 4) + (r & 1)] = get<float>(w, i.s[6 + r], lane);
  }

  // A tensor core adds some products at a time, of which the sum is then cut off to a float.
  template <bool kRough>
  void multiply() {
    for (int row = 0; row < kRows; ++row)
      for (int k = 0; k < kDepth; ++k) {
        c[row] += a[row][k] * b[k];
        if (kRough && k % 4 == 3)
          for (int column = 0; column < kColumns; ++column) c[row][column] = truncated(c[row][column]);
      }
  }

  void write(Warp& w, const Instruction& i) const {
    for (int r = 0; r < 4; ++r)
      for (int lane = 0; lane < 32; ++lane)
        put(w, i.d[r], lane, static_cast<float>(c[lane / 4 + 8 * (r >> 1)][2 * (lane % 4) + (r & 1)]));
  }
};

template <class Format>
void multiply(Warp& w, const Instruction& i, uint32_t mask) {
  if (mask != kAllLanes) fail_at(w, i, "mma without all 32 lanes");
  Matrices<Format> matrices;
  matrices.read(w, i);
  if (options.rough)
    matrices.template multiply<true>();
  else
    matrices.template multiply<false>();
  matrices.write(w, i);
}

template <class Format>
void add_mma(Opcodes& all, const std::string& shape, const std::string& type) {
  all.add("mma.sync.aligned." + shape + ".row.col.f32." + type + "." + type + ".f32", multiply<Format>,
          {4, 4, 4, 4, 4, 4, 4, 4, 4, 4}, Kind::kWarp);
}

}  // namespace

void add_matrices(Opcodes& all) {
  add_mma<BFloat16>(all, "m16n8k16", "bf16");
  add_mma<Half>(all, "m16n8k16", "f16");
  add_mma<Tf32>(all, "m16n8k8", "tf32");
}

}  // namespace ptx
