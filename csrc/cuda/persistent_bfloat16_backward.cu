#include "persistent_launch.cuh"

FUSED_RNN_LAUNCHES(Backward, BFloat16, bfloat16)
