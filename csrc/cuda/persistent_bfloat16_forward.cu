#include "persistent_launch.cuh"

FUSED_RNN_LAUNCHES(Forward, BFloat16, bfloat16)
