// What the C++ checks share: random numbers, error messages, arrays that end at an inaccessible page.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <random>

#include "cpu/simd/storage.h"

namespace fused_rnn::cpu {
namespace {

std::mt19937_64 randoms;
int64_t between(int64_t low, int64_t high) { return low + int64_t(randoms() % uint64_t(high - low + 1)); }

char problem[256];
#define CHECK(condition, ...)                       \
  if (!(condition)) {                               \
    snprintf(problem, sizeof problem, __VA_ARGS__); \
    return problem;                                 \
  }

// An array of NaN that ends at an inaccessible page: reading or writing past its end crashes.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const int64_t page = sysconf(_SC_PAGESIZE), bytes = (count * int64_t(sizeof(T)) + page - 1) / page * page;
    size_ = bytes + page;
    base_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + bytes, page, PROT_NONE);
    data_ = reinterpret_cast<T*>(base_ + bytes - count * int64_t(sizeof(T)));
    memset(static_cast<void*>(data_), 0xff, count * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base_, size_); }

  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  Guarded& fill_with_integers() {
    for (int64_t i = 0; i < count_; ++i) store(data_[i], Arithmetic<T>(between(-4, 4)));
    return *this;
  }
  Guarded& fill_with_fractions() {
    for (int64_t i = 0; i < count_; ++i) store(data_[i], Arithmetic<T>(between(-1000, 1000)) / Arithmetic<T>(777));
    return *this;
  }

 private:
  int64_t count_, size_;
  char* base_;
  T* data_;
};

}  // namespace
}  // namespace fused_rnn::cpu
