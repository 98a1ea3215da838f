// Stands for torch's: see engine.cpp.
#pragma once

namespace torch::headeronly {
enum class DeviceType { CPU };
}
