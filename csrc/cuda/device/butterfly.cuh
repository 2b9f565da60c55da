/*
 * Steps of a Hadamard transform whose elements lie in registers, `count` of them in a thread: element i meets element i ^ h, for every
 * power of two h with from <= h < to. The order of the sums is that of the steps.
 */
#pragma once
#include "types.cuh"

/* Bits of the place in v. */
DEVICE void butterflies(float *v, const int count, const int from, const int to)
{
    #pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
        const int h = 1 << bit;
        if (h < from || h >= to) continue;
        #pragma unroll
        for (int i = 0; i < count; ++i) {
            if (i & h) continue;
            const float a = v[i], b = v[i + h];
            v[i]     = a + b;
            v[i + h] = a - b;
        }
    }
}

/* Bits of the thread's place in its warp. */
DEVICE void lane_butterflies(float *v, const int count, const int from, const int to)
{
    #pragma unroll
    for (int h = 1; h < 32; h *= 2) {
        if (h < from || h >= to) continue;
        const float sign = threadIdx.x & h ? -1.0f : 1.0f;
        #pragma unroll
        for (int i = 0; i < count; ++i) v[i] = fmaf(sign, v[i], __shfl_xor_sync(~0u, v[i], h));
    }
}
