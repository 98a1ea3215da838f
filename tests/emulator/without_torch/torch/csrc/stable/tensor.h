// Stands for torch's: see engine.cpp.
#pragma once
#include <cstdint>

#include "torch/headeronly/core/DeviceType.h"

namespace torch::stable {

using headeronly::DeviceType;

struct Device {
  DeviceType type;
};

// A batch of matrices; `dtype` is a fused_rnn::Dtype.
struct Tensor {
  void* data;
  int64_t strides[3];
  int dtype;
};

}  // namespace torch::stable
