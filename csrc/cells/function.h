// Declares a function for the host and for CUDA device code.
#pragma once

#ifdef __CUDACC__
#define FUSED_RNN_FN __host__ __device__ __forceinline__
#else
#define FUSED_RNN_FN inline __attribute__((always_inline))
#endif
