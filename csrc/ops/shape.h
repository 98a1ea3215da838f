// A tensor's sizes, without allocation: a call makes a dozen of these.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fused_rnn {

class Shape {
 public:
  static constexpr int64_t kMaxDims = 6;  // `saved` has five: [M, D, T, B, R]

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(sizes.begin(), sizes.end()) {}
  Shape(const int64_t* first, const int64_t* last) : dims_(last - first) {
    if (dims_ > kMaxDims) throw std::runtime_error("fused_rnn: a shape of more than 6 dimensions");
    std::copy(first, last, sizes_);
  }

  const int64_t* begin() const { return sizes_; }
  const int64_t* end() const { return sizes_ + dims_; }
  int64_t size() const { return dims_; }
  bool empty() const { return dims_ == 0; }
  int64_t operator[](int64_t i) const { return sizes_[i]; }

  void insert(int64_t at, int64_t size) {
    *this = concat({Shape(begin(), begin() + at), {size}, Shape(begin() + at, end())});
  }

  static Shape concat(std::initializer_list<Shape> parts) {
    int64_t all[kMaxDims * 4], dims = 0;
    for (const Shape& part : parts)
      for (int64_t size : part) all[dims++] = size;
    return Shape(all, all + dims);
  }

 private:
  int64_t dims_ = 0;
  int64_t sizes_[kMaxDims];
};

inline Shape concat(std::initializer_list<Shape> parts) { return Shape::concat(parts); }

inline int64_t elements_of(const Shape& shape) {
  int64_t elements = 1;
  for (int64_t size : shape) elements *= size;
  return elements;
}

// For Shape and for torch's arrays of sizes.
template <class Sizes>
std::string text(const Sizes& sizes) {
  std::ostringstream out;
  const char* separator = "[";
  for (int64_t size : sizes) out << separator << size, separator = ", ";
  out << (sizes.begin() == sizes.end() ? "[]" : "]");
  return out.str();
}

template <class Sizes>
bool same(const Sizes& sizes, const Shape& shape) {
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

}  // namespace fused_rnn
