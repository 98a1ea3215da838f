// Peak rates of one thread of this machine: fused multiply-adds, and memory reads. Called through ctypes by limits.py,
// which compiles this file for the processor it runs on. Each function repeats for about `seconds`.

#include <chrono>
#include <cstdint>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Independent sums: enough to hide the latency, 4 to 5 cycles, of multiply-adds on two ports; few enough for 16
// registers.
constexpr int kSums = 12;
constexpr int kRepeats = 1000;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Calls work() for about `seconds`; returns calls per second.
template <class Work>
double rate(double seconds, Work work) {
  const double start = now();
  double end;
  int64_t calls = 0;
  do {
    work();
    ++calls;
    end = now();
  } while (end - start < seconds);
  return calls / (end - start);
}

// Keeps a value in a register, opaque to the optimizer.
template <class T>
void opaque(T& value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#else
  asm volatile("" : "+w"(value));
#endif
}

// step(sum) kRepeats times for every sum. Local to one function, so that they stay in registers.
template <class Vector, class Step>
[[gnu::always_inline]] inline void repeat(Step step) {
  Vector sums[kSums] = {};
  for (int k = 0; k < kRepeats; ++k) {
#pragma GCC unroll 12
    for (int s = 0; s < kSums; ++s) {
      sums[s] = step(sums[s]);
      opaque(sums[s]);
    }
  }
}

template <class T>
double multiply_add(double seconds) {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  constexpr int kLanes = kVectorBytes / sizeof(T);
  const double calls = rate(seconds, [] {
    Vector a = Vector{} + T(0.5), b = Vector{} + T(0.25);
    opaque(a);
    opaque(b);
    repeat<Vector>([=](Vector sum) { return sum * a + b; });
  });
  return calls * kRepeats * kSums * kLanes * 2;
}

}  // namespace

extern "C" {

// Operations per second; a multiply-add counts as two.
double limits_float32(double seconds) { return multiply_add<float>(seconds); }
double limits_float64(double seconds) { return multiply_add<double>(seconds); }

// Products of bfloat16 pairs summed in float32; 0 where the processor has no such instruction.
double limits_bfloat16([[maybe_unused]] double seconds) {
#if defined(__AVX512BF16__)
  const double calls = rate(seconds, [] {
    const __m512bh a = {}, b = {};
    repeat<__m512>([=](__m512 sum) { return _mm512_dpbf16_ps(sum, a, b); });
  });
  return calls * kRepeats * kSums * 32 * 2;
#else
  return 0;
#endif
}

// The same on tiles of 16 rows x 64 bytes; 0 if processor or kernel do not support them.
double limits_bfloat16_amx([[maybe_unused]] double seconds) {
#if defined(__AMX_BF16__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of asm/prctl.h
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
  // Tiles 0 to 3 are sums, 4 to 7 factors; tile numbers must be literals.
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  const double calls = rate(seconds, [] {
    for (int k = 0; k < kRepeats; ++k) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  });
  _tile_release();
  return calls * kRepeats * 4 * 16 * 16 * 32 * 2;
#else
  return 0;
#endif
}

// Bytes per second of reading `bytes` (rounded down to a multiple of 12 vectors) repeatedly.
double limits_read(const char* data, int64_t bytes, double seconds) {
  typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(4)));
  constexpr int64_t kStride = kSums * sizeof(Vector);
  const int64_t strides = bytes / kStride;
  const int64_t passes = 1 + (1 << 18) / bytes;  // reading the clock costs as much as reading a few kilobytes
  const double calls = rate(seconds, [=] {
    Vector sums[kSums] = {};
    for (int64_t pass = 0; pass < passes; ++pass)
      for (int64_t k = 0; k < strides; ++k) {
#pragma GCC unroll 12
        for (int s = 0; s < kSums; ++s) {
          sums[s] += reinterpret_cast<const Vector*>(data + k * kStride)[s];
          opaque(sums[s]);
        }
      }
  });
  return calls * passes * strides * kStride;
}
}
