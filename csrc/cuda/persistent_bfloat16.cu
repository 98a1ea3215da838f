#include "persistent_launch.cuh"

FUSED_RNN_LAUNCHES(BFloat16, bfloat16)
