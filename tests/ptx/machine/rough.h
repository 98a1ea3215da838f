// How far off results may be that PTX gives bounds for, but no value. They are exact to rounding, unless options.rough:
// then they are off by anything within the bound, always the same for the same argument, as on a GPU.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "options.h"
#include "registers.h"

namespace ptx {

// -1 to 1, as if at random.
inline double deviation(float argument) {
  uint32_t hash = bits_as<uint32_t>(argument) ^ options.seed * 0x9e3779b9u;
  hash = (hash ^ hash >> 16) * 0x7feb352du;
  hash = (hash ^ hash >> 15) * 0x846ca68bu;
  return static_cast<double>(static_cast<int32_t>(hash ^ hash >> 16)) / 2147483648.0;
}

template <int kUnits>
struct OffByUnits {  // in the last place
  float operator()(float exact, float argument) const {
    const uint32_t bits = bits_as<uint32_t>(exact), magnitude = bits & 0x7fffffff;
    if (magnitude <= kUnits || magnitude + kUnits >= 0x7f800000) return exact;
    return bits_as<float>(bits + static_cast<uint32_t>(std::lround(deviation(argument) * kUnits)));
  }
};

struct OffByAbsolute {
  double bound;
  float operator()(float exact, float argument) const {
    return static_cast<float>(exact + deviation(argument) * bound);
  }
};

struct OffByRelative {
  double bound;
  float operator()(float exact, float argument) const {
    return static_cast<float>(exact * (1 + deviation(argument) * bound));
  }
};

// What tensor cores may make of a sum: cut off rather than rounded.
inline float truncated(double x) {
  const auto nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.f) : nearest;
}

}  // namespace ptx
