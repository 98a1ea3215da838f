// A warp's matrix product: its rows of weights, resident for the whole sequence, times the slot gathered at every step.
//
// The layout of a slot is [K/32][N][32]: chunks of 32 of K, contiguous for each of N batch columns. A lane loads 16
// bytes at a time, all of one column. K may be permuted as long as weights and slot agree, so nothing is transposed.
//
// Scalars, TensorCores and Tf32 have, for kTilesN * 8 columns:
//   kWords   registers per lane for a piece of weights: 16 rows, 32 of K
//   kLoads   loads per lane for a chunk
//   kSums    accumulators per lane for 16 rows
//   word(lane, i, at)             the lane's word i of a piece of at(row, k), row < 16, k < 32
//   add(sums, words, l, loaded)   multiplies and accumulates load l (scalars: of column l)
//   finish(sums, tile, c)         the sums of a column tile: c[2 * i + j] is row g + 8i, column 2q + j; lane 4g + q
// On tensor cores a lane loads its fragment of the operand: load l from first_byte() + byte_of(l) of a chunk.
// Scalars load all columns, kLoadsOfColumn times 16 bytes of each, from pair_byte(column / 2 % 4) +
// byte_of(load, column); each load is multiplied by kWordsOfLoad words of a piece.
#pragma once
#include "cuda/device/storage.h"

namespace fused_rnn::cuda {
namespace {

constexpr int kChunk = 32;  // of K

template <class To, class From>
FUSED_RNN_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
FUSED_RNN_DEVICE T not_a_number() {
  return T(__int_as_float(0x7fffffff));
}

FUSED_RNN_DEVICE int lane_of_warp() { return threadIdx.x % 32; }

// Byte offset of number k of a column in a slot.
template <class S, int kColumns>
FUSED_RNN_DEVICE constexpr unsigned slot_byte(int k, int column) {
  return static_cast<unsigned>(((k / kChunk) * kColumns + column) * kChunk + k % kChunk) * sizeof(S);
}

// mma accumulators: four per tile and lane.
template <class S, int kTilesN, int kLoadsOfTile>
struct OnTensorCores {
  static constexpr bool kTensorCores = true;
  static constexpr int kWords = 8 * kLoadsOfTile, kLoads = kLoadsOfTile * kTilesN, kSums = 4 * kTilesN;
  using Storage = S;
  using T = float;

  static FUSED_RNN_DEVICE void finish(const T* sums, int tile, T (&c)[4]) {
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) c[i] = sums[4 * tile + i];
  }

 protected:
  // Two mma instructions; multiply(d, i) is the i-th.
  template <class Multiply>
  static FUSED_RNN_DEVICE void add_two(T* sums, int load, Multiply multiply) {
    T* const of_tile = sums + 4 * (load / kLoadsOfTile);
    T d[4];
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) d[i] = of_tile[i];
    FUSED_RNN_UNROLL
    for (int i = 0; i < 2; ++i) multiply(d, i);
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) of_tile[i] = d[i];
  }
};

// 16-bit operands, float accumulators.
template <class S, int kTilesN>
struct TensorCores : OnTensorCores<S, kTilesN, 1> {
  using Base = OnTensorCores<S, kTilesN, 1>;

  template <class At>
  static FUSED_RNN_DEVICE uint32_t word(int lane, int i, At at) {
    const int row = lane / 4 + 8 * (i % 2), k = 8 * (lane % 4) + 4 * (i / 4) + 2 * (i / 2 % 2);
    return at(row, k).bits | uint32_t{at(row, k + 1).bits} << 16;
  }
  static FUSED_RNN_DEVICE unsigned first_byte() {
    return slot_byte<S, 8 * kTilesN>(8 * (lane_of_warp() % 4), lane_of_warp() / 4);
  }
  static FUSED_RNN_DEVICE constexpr unsigned byte_of(int load) { return slot_byte<S, 8 * kTilesN>(0, 8 * load); }

  static FUSED_RNN_DEVICE void add(float* sums, const uint32_t* words, int load, const Pack<4>& loaded) {
    Base::add_two(sums, load, [&](float (&d)[4], int half) {
      const uint32_t a[4] = {words[4 * half], words[4 * half + 1], words[4 * half + 2], words[4 * half + 3]};
      const uint32_t b[2] = {loaded.word[2 * half], loaded.word[2 * half + 1]};
      multiply(S{}, d, a, b);
    });
  }

 private:
  static FUSED_RNN_DEVICE void multiply(BFloat16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_bfloat16(d, a, b);
  }
  static FUSED_RNN_DEVICE void multiply(Half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_half(d, a, b);
  }
};

// float operands rounded to TF32, if torch's settings allow it.
template <class S, int kTilesN>
struct Tf32 : OnTensorCores<S, kTilesN, 2> {
  using Base = OnTensorCores<S, kTilesN, 2>;

  // Four mma instructions, two for each load: each takes two of the four numbers that a lane has of a column.
  template <class At>
  static FUSED_RNN_DEVICE uint32_t word(int lane, int i, At at) {
    const int row = lane / 4 + 8 * (i % 2), k = 16 * (i / 8) + 4 * (lane % 4) + 2 * (i / 4 % 2) + i / 2 % 2;
    return to_tf32(bits_as<uint32_t>(at(row, k)));
  }
  static FUSED_RNN_DEVICE unsigned first_byte() {
    return slot_byte<S, 8 * kTilesN>(4 * (lane_of_warp() % 4), lane_of_warp() / 4);
  }
  static FUSED_RNN_DEVICE constexpr unsigned byte_of(int load) {
    return slot_byte<S, 8 * kTilesN>(16 * (load % 2), 8 * (load / 2));
  }

  static FUSED_RNN_DEVICE void add(float* sums, const uint32_t* words, int load, const Pack<4>& loaded) {
    Base::add_two(sums, load, [&](float (&d)[4], int pair) {
      const uint32_t* w = words + 8 * (load % 2) + 4 * pair;
      const uint32_t a[4] = {w[0], w[1], w[2], w[3]};
      const uint32_t b[2] = {to_tf32(loaded.word[2 * pair]), to_tf32(loaded.word[2 * pair + 1])};
      multiply_tf32(d, a, b);
    });
  }
};

// float and double, by fused multiply-adds. A lane holds rows g and g + 8 of the weights, 8 of K, and accumulates their
// products with every column; the four lanes of a row then reduce-scatter over columns. Lanes adjacent along K read
// adjacent 16 bytes.
template <class S, int kTilesN>
struct Scalars {
  static constexpr bool kTensorCores = false;
  static constexpr int kPerLoad = 16 / sizeof(S), kLoadsOfColumn = 8 / kPerLoad, kWordsOfLoad = 2 * 4;
  static constexpr int kWords = kLoadsOfColumn * kWordsOfLoad, kSums = 2 * 8 * kTilesN;
  static constexpr int kLoads = kLoadsOfColumn * kTilesN;
  using Storage = S;
  using T = S;

  template <class At>
  static FUSED_RNN_DEVICE uint32_t word(int lane, int i, At at) {
    const int load = i / kWordsOfLoad, number = i % kWordsOfLoad / kWordsOfNumber;
    const int row = lane / 4 + 8 * (number / kPerLoad), k = (4 * load + lane % 4) * kPerLoad + number % kPerLoad;
    return bits_as<Number>(at(row, k)).word[i % kWordsOfNumber];
  }
  // A lane's column n of a tile is batch column n ^ 2q (lane 4g + q), so that the reduction exchanges the same
  // registers in every lane, without selects. Columns stay in pairs, whose order depends on the lane.
  static FUSED_RNN_DEVICE unsigned pair_byte(int pair) {
    const int q = lane_of_warp() % 4;
    return static_cast<unsigned>((pair ^ q) * 2 * kChunk + q * kPerLoad) * sizeof(S);
  }
  static FUSED_RNN_DEVICE constexpr unsigned byte_of(int load, int column) {
    return slot_byte<S, 8 * kTilesN>(4 * load * kPerLoad, column / 8 * 8 + column % 2);
  }

  static FUSED_RNN_DEVICE void add(T* sums, const uint32_t* words, int column, const Pack<4>& loaded) {
    FUSED_RNN_UNROLL
    for (int row = 0; row < 2; ++row) FUSED_RNN_UNROLL
    for (int i = 0; i < kPerLoad; ++i)
      sums[2 * column + row] += number(words, kPerLoad * row + i) * number(loaded.word, i);
  }
  static FUSED_RNN_DEVICE void finish(const T* sums, int tile, T (&c)[4]) {
    T half[4][2];  // of columns 0..3 for the low two lanes, 4..7 for the high two
    FUSED_RNN_UNROLL
    for (int n = 0; n < 4; ++n) FUSED_RNN_UNROLL
    for (int row = 0; row < 2; ++row)
      half[n][row] = sums[(8 * tile + n) * 2 + row] + across<2>(sums[(8 * tile + n + 4) * 2 + row]);
    FUSED_RNN_UNROLL
    for (int n = 0; n < 2; ++n) FUSED_RNN_UNROLL
    for (int row = 0; row < 2; ++row) c[2 * row + n] = half[n][row] + across<1>(half[n + 2][row]);
  }

 private:
  static constexpr int kWordsOfNumber = sizeof(S) / 4;
  using Number = Pack<kWordsOfNumber>;

  template <int kBits>
  static FUSED_RNN_DEVICE T across(T own) {
    if constexpr (kWordsOfNumber == 1) {
      return word_across<kBits>(own);
    } else {
      Number number = bits_as<Number>(own);
      FUSED_RNN_UNROLL
      for (int w = 0; w < kWordsOfNumber; ++w) number.word[w] = word_across<kBits>(number.word[w]);
      return bits_as<T>(number);
    }
  }
  static FUSED_RNN_DEVICE T number(const uint32_t* words, int i) {
    Number number;
    FUSED_RNN_UNROLL
    for (int w = 0; w < kWordsOfNumber; ++w) number.word[w] = words[i * kWordsOfNumber + w];
    return bits_as<T>(number);
  }
};

}  // namespace
}  // namespace fused_rnn::cuda
