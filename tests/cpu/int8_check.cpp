// Called by test_int8_product.py: csrc/cpu/gemm/int8.h against plain sums. Each function returns what is wrong, or null.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "checking.h"
#include "cpu/gemm/amx.h"
#include "cpu/gemm/int8.h"
#ifdef FUSED_RNN_AMX_INT8
#include "cpu/schedule/tile_support.cpp"
#endif

namespace fused_rnn::cpu {
namespace {

constexpr int kLanes = Vec<float>::kLanes;

// Mostly the ends of the range, where sums in 16 bits would saturate: every one of them (extreme), or some.
int64_t some_integer(bool extreme) {
  if (extreme || between(0, 1)) return between(0, 1) ? 127 : -127;
  return between(-127, 127);
}

// What a row of A holds: bytes, unsigned where kOffset is added.
Int8 stored(int64_t q) { return {int8_t(uint8_t(q + kOffset))}; }

// One vector of four products and sums, of all lanes.
const char* check_add_product(int64_t cases) {
  for (int64_t n = 0; n < cases; ++n) {
    int64_t a[4];
    Quad x;
    for (int k = 0; k < 4; ++k) a[k] = n < 4 ? (n % 2 ? 127 : -127) : some_integer(n % 2), x.k[k] = stored(a[k]).value;
    alignas(64) int8_t right[4 * kLanes];
    alignas(64) int32_t before[kLanes];
    for (int8_t& b : right) b = int8_t(n < 4 ? (n / 2 ? 127 : -127) : some_integer(n % 2));
    for (int32_t& s : before) s = int32_t(between(-1'000'000, 1'000'000));
    const Ints found = add_product(load_lanes<Ints>(before), x, load_lanes<Ints>(right));
    for (int j = 0; j < kLanes; ++j) {
      int64_t expected = before[j];
      for (int k = 0; k < 4; ++k) expected += (a[k] + kOffset) * right[4 * j + k];
      CHECK(found[j] == expected, "lane %d is %d, not %ld", j, int(found[j]), long(expected));
    }
  }
  return nullptr;
}

// Tiles of every height and width: rows of A that end at an inaccessible page.
template <class W, bool kOnTiles = false>
const char* check_multiply(int64_t cases) {
  constexpr int64_t kFactor = kTogether<W>;
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t depths[] = {1, 2, 3, 4, 5, between(1, 70), 511, 512, 513, between(500, 1300), 5000};
    const int64_t depth = depths[between(0, 10)], padded = (depth + 63) / 64 * 64;
    const int64_t count = between(0, 2) ? between(1, 14) : between(90, 130);
    const int vectors = int(between(1, kMostVectors));
    const int64_t width = vectors * kLanes, lines = (depth + kFactor - 1) / kFactor;
    const bool extreme = n % 2, lone = count == 1 && between(0, 1);
    Guarded<Left<W>> a(count * padded);
    Guarded<W> panel(lines * kFactor * width);
    std::vector<int64_t> left(count * depth), right(depth * width), offsets(width);
    for (int64_t i = 0; i < count * depth; ++i) left[i] = n < 4 ? 127 : some_integer(extreme);
    for (int64_t i = 0; i < depth * width; ++i) right[i] = n < 4 ? (n / 2 ? 127 : -127) : some_integer(extreme);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < padded; ++k) {
        if constexpr (std::is_same_v<W, Int8>)  // past the row's end there may be anything
          a[i * padded + k] = k < depth ? stored(left[i * depth + k]) : stored(between(-127, 127));
        else
          a[i * padded + k] = k < depth ? float(left[i * depth + k]) / 4.f : NAN;
      }
    for (int64_t k = 0; k < lines * kFactor; ++k)
      for (int64_t j = 0; j < width; ++j) {
        const int64_t q = k < depth ? right[k * width + j] : 0;
        panel[(k / kFactor * width + j) * kFactor + k % kFactor].value = int8_t(q);
        if constexpr (std::is_same_v<W, Int8>) offsets[j] += kOffset * q;
      }
    bool equal = true;
    int64_t next = 0;
    const LeftRows rows = {count, [&](int64_t i) { return &a[i * padded]; }, 1, lone};
    const Plain<W> matrix = {depth, width};
    const W* const panels = panel.data();
    const auto use = [&](int64_t, int64_t i, const auto* sums) {
      equal = equal && i == next++;
      for (int64_t j = 0; j < width; ++j) {
        int64_t expected = 0, size = 0;
        for (int64_t k = 0; k < depth; ++k) {
          const int64_t product = left[i * depth + k] * right[k * width + j];
          expected += product, size += std::abs(product);
        }
        if constexpr (std::is_same_v<W, Int8>)
          equal = equal && sums[j] - offsets[j] == expected;
        else
          equal = equal && std::fabs(sums[j] - expected / 4.) <= 1e-6 * double(size);
      }
    };
#ifdef FUSED_RNN_AMX_INT8
    if constexpr (kOnTiles)
      multiply_on_tiles(matrix, panels, PanelRange{0, 1}, rows, FetchNothing{}, use);
    else
#endif
      multiply(matrix, panels, PanelRange{0, 1}, rows, FetchNothing{}, use);
    CHECK(equal && next == count, "wrong sum: depth %ld, %ld rows, %d vectors, lone %d", long(depth), long(count),
          vectors, lone);
  }
  return nullptr;
}

// Rows as integers: rounded half to even, the largest becomes 127, within a quantum of what they were.
const char* check_quantize(int64_t cases) {
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t depth = n % 7 == 0 ? between(1, 600) : between(1, 40), stride = QuantizedRows::stride_of(depth);
    CHECK(stride >= depth && stride % 64 == 0 && stride % 4096 != 0, "stride %ld of %ld", long(stride), long(depth));
    const double size = std::pow(10., double(between(-44, 30)));
    Guarded<float> row(depth), scale(2);
    Guarded<Int8> numbers(2 * stride);
    const bool ties = n % 3 == 0;  // with 127 as the largest the scale is 1
    for (int64_t k = 0; k < depth; ++k)
      row[k] = ties ? float(between(-254, 254)) / 2.f : float(double(between(-1000, 1000)) / 777 * size);
    if (ties) row[between(0, depth - 1)] = 127.f;
    QuantizedRows{numbers.data(), scale.data(), stride}.quantize(1, row.data(), depth);
    float largest = 0;
    for (int64_t k = 0; k < depth; ++k) largest = std::max(largest, std::fabs(row[k]));
    CHECK(scale[1] == largest / 127.f, "the scale is %g for %g", scale[1], largest);
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t byte = numbers[stride + k].value;
      const int64_t q = kOffset ? int64_t(uint8_t(byte)) - kOffset : byte;
      CHECK(-127 <= q && q <= 127, "%g of at most %g became %ld", row[k], largest, long(q));
      if (ties) CHECK(q == int64_t(std::nearbyint(row[k])), "%g became %ld", row[k], long(q));
      const bool tiny = largest < 1e-36f;  // may become 0
      CHECK((tiny && q == 0) || std::fabs(double(q) * scale[1] - row[k]) <= 0.501 * scale[1] + 1e-45,
            "%g of at most %g became %ld", row[k], largest, long(q));
    }
  }
  return nullptr;
}

// One number that is none makes the scale of its row NaN, wherever it is.
const char* check_not_finite() {
  const float inf = INFINITY;
  for (const float wrong : {float(NAN), inf, -inf})
    for (int64_t depth : {1, 3, 16, 33, 100})
      for (int64_t at = 0; at < depth; ++at) {
        Guarded<float> row(depth);
        for (int64_t k = 0; k < depth; ++k) row[k] = float(k);
        CHECK(!std::isnan(scale_of(row.data(), depth).value), "NaN for numbers");
        row[at] = wrong;
        CHECK(std::isnan(scale_of(row.data(), depth).value), "%g at %ld of %ld went unnoticed", wrong, long(at),
              long(depth));
      }
  return nullptr;
}

const char* check(const char* what, int64_t cases) {
  if (!strcmp(what, "add_product")) return check_add_product(cases);
  if (!strcmp(what, "multiply")) return check_multiply<Int8>(cases);
#ifdef FUSED_RNN_AMX_INT8
  if (!strcmp(what, "multiply_on_tiles"))
    return tile_support().bytes ? check_multiply<Int8, true>(cases) : "tiles are not allowed";
#endif
  if (!strcmp(what, "multiply_weights_only")) return check_multiply<Int8Weight>(cases);
  if (!strcmp(what, "quantize")) return check_quantize(cases);
  if (!strcmp(what, "not_finite")) return check_not_finite();
  return "there is no such check";
}

}  // namespace
}  // namespace fused_rnn::cpu

extern "C" const char* check_int8(const char* what, uint64_t seed, int64_t cases) {
  fused_rnn::cpu::randoms.seed(seed);
  return fused_rnn::cpu::check(what, cases);
}
