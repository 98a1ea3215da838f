#include "persistent_launch.cuh"

FUSED_RNN_LAUNCHES(Forward, float, float)
