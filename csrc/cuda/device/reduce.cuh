/* Sums and maxima over a warp and a block, always in the same order, the same value in every thread. */
#pragma once
#include "types.cuh"

DEVICE float warp_sum(float v)
{
    #pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

DEVICE float warp_max(float v)
{
    #pragma unroll
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

/* `scratch` has one float a warp and may be used again after the next __syncthreads(). */
DEVICE float block_sum(float v, float *scratch, int warps)
{
    v = warp_sum(v);
    if (warps == 1) return v;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < warps; ++i) v += scratch[i];
    return v;
}

DEVICE float block_max(float v, float *scratch, int warps)
{
    v = warp_max(v);
    if (warps == 1) return v;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
    for (int i = 1; i < warps; ++i) v = fmaxf(v, scratch[i]);
    return v;
}
