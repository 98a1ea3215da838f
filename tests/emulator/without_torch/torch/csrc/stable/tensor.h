// Stands for torch's: see engine.cpp.
#pragma once
#include <cstdint>

#include "torch/headeronly/core/DeviceType.h"

namespace torch::stable {

using headeronly::DeviceType;

struct Device {
  DeviceType type;
};

// A batch of matrices; `is_wide`: of numbers in the arithmetic type.
struct Tensor {
  void* data;
  int64_t strides[3];
  bool is_wide;
};

}  // namespace torch::stable
