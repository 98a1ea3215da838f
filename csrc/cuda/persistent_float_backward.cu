#include "persistent_launch.cuh"

FUSED_RNN_LAUNCHES(Backward, float, float)
