/* The end of kernels whose sums leave from a warpgroup's registers (wgmma.cuh) in T, the kernel's format. Macros: T, BN. */
#pragma once
#include "gemm.cuh"
#include "mma.cuh"
#include "quad.cuh"

/* Sums of pieces `first` to `end` (constants) of a tile's columns, 8 each, to out, with the bias: four lanes put together what they store, 16 bytes at a time. The warp's rows begin at m, the tile's columns at n. */
DEVICE void linear_put(const linear_args *l, float (&d)[BN / 2], int first, int end, int m, int n)
{
    const int t = (int)threadIdx.x % 4, row = m + (int)threadIdx.x % 32 / 4 + (t / 2) * 8;
    T *const  to = (T *)l->out + row * l->out_stride;
    if (l->bias) {
        #pragma unroll
        for (int j = first; j < end; ++j) {
            const float b0 = linear_bias(l, n + 8 * j + 2 * t), b1 = linear_bias(l, n + 8 * j + 2 * t + 1);
            d[4 * j] += b0, d[4 * j + 1] += b1, d[4 * j + 2] += b0, d[4 * j + 3] += b1;
        }
    }
    #pragma unroll
    for (int j = first; j < end; j += 2) {
        const bool   two = j + 1 < end;
        const float *x = d + 4 * j, *y = two ? x + 4 : x;
        const uint4  w      = transpose4(make_uint4(pack2(x[0], x[1], (const T *)0), pack2(y[0], y[1], (const T *)0), pack2(x[2], x[3], (const T *)0), pack2(y[2], y[3], (const T *)0)), t);
        const int    column = n + 8 * (j + t % 2);
        if (row < l->rows && column < l->columns && (two || t % 2 == 0)) *(uint4 *)(to + column) = w;
    }
}
