// Called by test_tiles.py: csrc/cpu/gemm/split.h and csrc/cpu/gemm/amx.h, compiled for split floats. Each function
// returns what is wrong, or null. Arrays end at an inaccessible page.
#include <math.h>

#include <cstring>
#include <vector>

#include "checking.h"
#include "cpu/gemm/amx.h"
#include "cpu/schedule/tile_support.cpp"

namespace fused_rnn::cpu {
namespace {

float normal() { return std::normal_distribution<float>()(randoms); }

// Floats of every magnitude, and those at the ends of the range.
float any_float() {
  const float special[] = {0.f,      -0.f, 1.f, 0x1p-126f, 0x1p-149f, 3.3895e38f, 3.3961e38f, 3.402823466e38f,
                           INFINITY, NAN};
  if (between(0, 3) == 0) return between(0, 1) ? special[between(0, 9)] : -special[between(0, 9)];
  return float_of(uint32_t(randoms()));
}
bool same(float a, float b) { return a != a ? b != b : bits_of(a) == bits_of(b) || (a == 0 && b == 0); }

const char* check_parts(int64_t cases) {
  for (int64_t n = 0; n < cases; ++n) {
    Vec<float> x;
    for (int i = 0; i < Vec<float>::kLanes; ++i) x.v[i] = any_float();
    const Parts<Split> parts = split(x.v);
    const Vec<float> again = whole(parts);
    for (int i = 0; i < Vec<float>::kLanes; ++i) {
      const float whole_x = x.v[i], first = parts.part[0][i], second = parts.part[1][i], third = parts.part[2][i];
      for (const float part : {first, second, third})
        CHECK((bits_of(part) & 0xffffu) == 0, "a part of %a is no bfloat16", whole_x);
      if (fabsf(whole_x) < 0x1p-110f) {
        CHECK(fabsf(again.v[i] - whole_x) <= 0x1p-126f, "the parts of %a come to %a", whole_x, again.v[i]);
      } else if (!isinf(whole_x)) {
        CHECK(same(again.v[i], whole_x), "the parts of %a come to %a", whole_x, again.v[i]);
        CHECK(whole_x != whole_x || fabsf(second) <= 1.01f * ldexpf(fabsf(whole_x), -8), "%a: second part %a", whole_x,
              second);
        CHECK(whole_x != whole_x || fabsf(third) <= 1.01f * ldexpf(fabsf(whole_x), -16), "%a: third part %a", whole_x,
              third);
      } else {
        CHECK(isfinite(first) && isfinite(second) && same(third, whole_x), "%a in parts: %a %a %a", whole_x, first,
              second, third);
      }
    }
  }
  return nullptr;
}

// Numbers stored anywhere in a row; their neighbours must not change.
const char* check_rows(int64_t cases) {
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t chunks = between(1, 4), size = chunks * kSplitChunk;
    Guarded<Split> row(size);
    std::vector<float> expected(size);
    load_row_at<Split, float>(row.data(), 0, expected.data(), size);
    for (int again = 0; again < 10; ++again) {
      const int64_t j = between(0, size - 1), count = between(1, size - j < kSplitLanes ? size - j : kSplitLanes);
      Vec<float> x;
      for (int i = 0; i < kSplitLanes; ++i) x.v[i] = normal();
      store_at(row.data(), j, x, count);
      for (int64_t i = 0; i < count; ++i) expected[j + i] = x.v[i];
      const int64_t from = between(0, size - 1),
                    wanted = between(1, kSplitLanes < size - from ? kSplitLanes : size - from);
      const Vec<float> found = load_at(row.data(), from, wanted);
      for (int64_t i = 0; i < kSplitLanes; ++i)
        CHECK(same(found.v[i], i < wanted ? expected[from + i] : 0.f), "number %ld of %ld, read from %ld on",
              long(from + i), long(size), long(from));
    }
    std::vector<float> all(size);
    store_row_from(all.data(), row.data(), 0, size);
    for (int64_t i = 0; i < size; ++i) CHECK(same(all[i], expected[i]), "number %ld of %ld", long(i), long(size));
    const int64_t first = between(0, size - 1), zeros = between(0, size - first);
    zero_row_at(row.data(), first, zeros);
    store_row_from(all.data(), row.data(), 0, size);
    for (int64_t i = 0; i < size; ++i)
      CHECK(same(all[i], i >= first && i < first + zeros ? 0.f : expected[i]), "zeros from %ld on", long(first));
  }
  return nullptr;
}

// A matrix of floats as rows of A and as panels.
struct Operand {
  int64_t rows, depth, stride;
  std::vector<float> numbers;
  Guarded<Split> split;

  Operand(int64_t rows, int64_t depth, bool whole_numbers)
      : rows(rows),
        depth(depth),
        stride(padded_depth<Split>(depth) + kSplitChunk * between(0, 1)),
        numbers(rows * depth),
        split(rows * stride) {
    for (float& x : numbers) x = whole_numbers ? float(between(-4, 4)) : normal();
    for (int64_t i = 0; i < rows; ++i) {
      zero_row_at(split.data() + i * stride, 0, padded_depth<Split>(depth));
      load_row_at<Split, float>(split.data() + i * stride, 0, &numbers[i * depth], depth);
    }
  }
  const Split* row(int64_t i) { return split.data() + i * stride; }
};
struct Panels {
  Plain<Split> matrix;
  Guarded<Split> packed;

  explicit Panels(const Operand& columns, bool transposed)
      : matrix{columns.depth, columns.rows}, packed(matrix.size()) {
    std::vector<float> by_row(columns.numbers.size());
    for (int64_t j = 0; j < columns.rows; ++j)
      for (int64_t k = 0; k < columns.depth; ++k) by_row[k * columns.rows + j] = columns.numbers[j * columns.depth + k];
    for (int64_t panel = 0; panel < matrix.panels(); ++panel)
      if (transposed)
        matrix.pack_transpose_of(packed.data(), panel, columns.numbers.data());
      else
        matrix.pack(packed.data(), panel, [&](int64_t k) { return &by_row[k * columns.rows]; });
  }
};
double dot(const Operand& a, int64_t i, const Operand& b, int64_t j, double* size = nullptr) {
  double sum = 0;
  for (int64_t k = 0; k < a.depth; ++k) {
    const double product = double(a.numbers[i * a.depth + k]) * b.numbers[j * a.depth + k];
    sum += product;
    if (size) *size += fabs(product);
  }
  return sum;
}

int64_t some_depth() {
  const int64_t sizes[] = {1, 2, 31, 32, 33, between(1, 70), 256, 511, 512, 513, between(500, 1300)};
  return sizes[between(0, 10)];
}
int64_t some_rows() {
  const int64_t sizes[] = {1, 2, 15, 16, 17, 33, between(1, 40), 127, 128, 129, between(100, 300)};
  return sizes[between(0, 10)];
}

const char* check_multiply(int64_t cases) {
  for (int64_t n = 0; n < cases; ++n) {
    const bool whole_numbers = n % 2, large = n % 32 < 2;  // rows of more than 1 MB, and more than four panels
    const int64_t depth = large ? between(1400, 1700) : some_depth(), count = large ? between(125, 260) : some_rows(),
                  columns = large ? between(250, 600) : between(1, 150);
    Operand a(count, depth, whole_numbers), b(columns, depth, whole_numbers);
    Panels panels(b, between(0, 1));
    const bool even = between(0, 1), keep = between(0, 1);
    std::vector<int64_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = even ? i : between(0, count - 1);
    const int64_t first = between(0, panels.matrix.panels() - 1), last = between(first, panels.matrix.panels());
    std::vector<std::vector<float>> kept(panels.matrix.panels());
    for (int64_t p = 0; p < panels.matrix.panels(); ++p)
      kept[p].resize(keep ? count * panels.matrix.panel_vectors(p) * Vec<float>::kLanes : 0);
    std::vector<int64_t> used(panels.matrix.panels());
    double worst = 0;
    bool in_order = true, right = true, as_kept = true;
    multiply(
        panels.matrix, static_cast<const Split*>(panels.packed.data()), PanelRange{first, last, between(0, 1) == 1},
        LeftRows{count, [&](int64_t i) { return a.row(order[i]); }}, FetchNothing{},
        [&](int64_t panel, int64_t i, const float* sums) {
          in_order = in_order && i == used[panel]++;
          const int64_t width = panels.matrix.panel_vectors(panel) * Vec<float>::kLanes;
          as_kept = as_kept && (!keep || sums == &kept[panel][i * width]);
          for (int64_t v = 0; v < width; ++v) {
            const int64_t j = panels.matrix.first_column(panel) + v;
            double size = 0;
            const double exact = j < columns ? dot(a, order[i], b, j, &size) : 0;
            if (whole_numbers || j >= columns)
              right = right && sums[v] == exact;
            else  // relative to the error that a float sum may have
              worst = fmax(worst, fabs(sums[v] - exact) / (size * (0x1p-23 + 0x1p-24 * sqrt(double(depth)))));
          }
        },
        [&](int64_t panel) { return keep ? kept[panel].data() : nullptr; });
    for (int64_t p = 0; p < panels.matrix.panels(); ++p)
      CHECK(in_order && used[p] == (p >= first && p < last ? count : 0), "%ld of %ld rows were used", long(used[p]),
            long(count));
    CHECK(right && as_kept, "wrong: depth %ld, %ld rows, %ld columns", long(depth), long(count), long(columns));
    CHECK(worst < 1, "%.2f times what is allowed: depth %ld, %ld rows", worst, long(depth), long(count));
  }
  return nullptr;
}

// The first vectors of a second product's panel are accumulated into the first product's sums.
const char* check_second(int64_t cases) {
  constexpr int kShared = 2;
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t count = some_rows(), columns = 3 * Vec<float>::kLanes;
    Operand a(count, some_depth(), true), b(columns, a.depth, true), c(count, some_depth(), true),
        d(columns, c.depth, true);
    Panels one(b, true), two(d, true);
    bool right = true;
    const auto row = [&](int64_t i) { return c.row(i); };
    multiply_both(
        one.matrix, static_cast<const Split*>(one.packed.data()), PanelRange{0, 1},
        LeftRows{count, [&](int64_t i) { return a.row(i); }}, FetchNothing{},
        [&](int64_t, int64_t i, const float* sums) {
          for (int64_t j = 0; j < columns; ++j) {
            const bool shared = j < kShared * Vec<float>::kLanes;
            right = right && sums[j] == dot(a, i, b, j) + (shared ? dot(c, i, d, j) : 0);
            right = right && (shared || sums[j + Vec<float>::kLanes] == dot(c, i, d, j));
          }
        },
        Second<kShared, Plain<Split>, Split, decltype(row)>{two.matrix, two.packed.data(), row});
    CHECK(right, "wrong: depths %ld and %ld, %ld rows", long(a.depth), long(c.depth), long(count));
  }
  return nullptr;
}

// A row's sums have the same bits whichever rows it is computed with.
const char* check_order(int64_t cases) {
  for (int64_t n = 0; n < cases; ++n) {
    const int64_t count = some_rows(), columns = between(1, 100);
    Operand a(count, some_depth(), false), b(columns, a.depth, false);
    Panels panels(b, true);
    std::vector<float> together(count * columns), apart(count * columns);
    const auto run = [&](int64_t first, int64_t rows, std::vector<float>& to) {
      multiply(panels.matrix, static_cast<const Split*>(panels.packed.data()), PanelRange{0, panels.matrix.panels()},
               LeftRows{rows, [&](int64_t i) { return a.row(first + i); }}, FetchNothing{},
               [&](int64_t panel, int64_t i, const float* sums) {
                 const int64_t j0 = panels.matrix.first_column(panel), j1 = minimum(columns, j0 + 64);
                 for (int64_t j = j0; j < j1; ++j) to[(first + i) * columns + j] = sums[j - j0];
               });
    };
    run(0, count, together);
    for (int64_t first = 0, rows; first < count; first += rows) run(first, rows = between(1, count - first), apart);
    CHECK(memcmp(together.data(), apart.data(), together.size() * sizeof(float)) == 0,
          "other bits when rows are dealt otherwise: depth %ld, %ld rows", long(a.depth), long(count));
  }
  return nullptr;
}

const char* check_panel_rows(int64_t cases) {
  for (int64_t n = 0; n < cases; ++n) {
    Operand columns(between(1, 100), between(1, 70), false);
    Panels panels(columns, between(0, 1));
    for (int64_t panel = 0; panel < panels.matrix.panels(); ++panel)
      for (int64_t k = 0; k < columns.depth; ++k) {
        float row[kMostVectors * Vec<float>::kLanes];
        load_panel_row(row, panels.packed.data() + panels.matrix.offset(panel), panels.matrix.panel_vectors(panel), k);
        for (int64_t j = panels.matrix.first_column(panel), v = 0; j < minimum(columns.rows, 64 * panel + 64); ++j, ++v)
          CHECK(same(row[v], columns.numbers[j * columns.depth + k]), "number %ld of row %ld", long(j), long(k));
      }
  }
  return nullptr;
}

}  // namespace
}  // namespace fused_rnn::cpu

extern "C" const char* check_tiles(const char* what, uint64_t seed, int64_t cases) {
  using namespace fused_rnn::cpu;
  if (!tile_support().bfloat16) return "tiles are not allowed";
  randoms.seed(seed);
  if (!strcmp(what, "parts")) return check_parts(cases);
  if (!strcmp(what, "rows")) return check_rows(cases);
  if (!strcmp(what, "panel_rows")) return check_panel_rows(cases);
  if (!strcmp(what, "multiply")) return check_multiply(cases);
  if (!strcmp(what, "second")) return check_second(cases);
  if (!strcmp(what, "order")) return check_order(cases);
  return "there is no such check";
}
