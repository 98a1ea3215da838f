#include "persistent_launch.cuh"

FUSED_RNN_LAUNCHES(Backward, double, double)
