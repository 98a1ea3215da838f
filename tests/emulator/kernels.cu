// Compiled, never run: the emulator's test kernels, and so all of csrc/cuda/device.h, are device code for Hopper.
#include "kernels.cuh"

#include "cuda/launch.h"

namespace fused_rnn {

template <class... Kernels>
bool any_is_null(Kernels... kernels) {
  return (... || (reinterpret_cast<const void*>(kernels) == nullptr));
}

bool refer_to_all_kernels() {
  return any_is_null(mirror, mirror_in_warp, shift, sum_first, fill, some_wait, wait_apart, shuffle_some, rotate,
                     pass_on, tell_next, exchange, poll_for, nothing, multiply_matrices<BFloat16Product>,
                     multiply_matrices<HalfProduct>, multiply_matrices<Tf32Product>, multiply_matrices<RoundedProduct>);
}

void launch_in_every_way(int* numbers) {
  launch({1, 64, nullptr, 1024}, mirror, numbers, false);
  launch({2, 64, nullptr, 200 * 1024, true, 2}, mirror, numbers, false);
}

}  // namespace fused_rnn
