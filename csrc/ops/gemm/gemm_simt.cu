/*
 * out = input weight^T by plain f32 multiply-adds: true f32 where the matrix units would shorten it, and the general kernel of all
 * formats. One block a tile of 64 x 64 outputs, a thread 8 x 4 of them; slabs of 16 in K are turned on their way to shared memory so
 * that both operands run along the tile. 2 M N K operations: bound by the multiply-adders.
 *
 *   T       f32, f16 or bf16
 *   PIECES  1: loads of 16 bytes (f32 only; rows of input and weight 16-byte aligned, K a multiple of 4); 0: any
 *
 * An output is one chain of multiply-adds over K in order, in both forms.
 */
#include "gemm.cuh"
#include "gemm_simt.cuh"
#include "launch.cuh"

/* This thread's share of a slab: 4 elements along K of rows r and r + 32 of the tile. Zeros outside. */
DEVICE void fetch(float v[2][4], const void *from, int64_t stride, int64_t row, int64_t rows, int64_t k, int64_t depth)
{
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int64_t r = row + 32 * i;
        const T      *p = (const T *)from + r * stride + k;
#if PIECES
        const uint4 u = r < rows && k < depth ? *(const uint4 *)p : make_uint4(0, 0, 0, 0);
        unpack16(v[i], u, (const T *)0);
#else
        #pragma unroll
        for (int e = 0; e < 4; ++e) v[i][e] = r < rows && k + e < depth ? to_f32(p[e]) : 0.0f;
#endif
    }
}

DEVICE void put(float to[BK][LINE], const float v[2][4], int row, int k)
{
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        #pragma unroll
        for (int e = 0; e < 4; ++e) to[k + e][row + 32 * i] = v[i][e];
}

extern "C" __global__ __launch_bounds__(THREADS) void linear_simt(const __grid_constant__ linear_args batch)
{
    const linear_args a = linear_batch(&batch, blockIdx.y);
    __shared__ __align__(16) float xs[2][BK][LINE], ws[2][BK][LINE];
    int64_t                        m0, n0;
    linear_tile(&a, 64, 64, &m0, &n0);
    const int row = (int)threadIdx.x / 4, k4 = (int)threadIdx.x % 4 * 4;        /* what it copies */
    const int m = (int)threadIdx.x / 16 * 8, n = (int)threadIdx.x % 16 * 4;     /* what it computes */

    pdl_wait();
    float x[2][4], w[2][4], d[8][4];
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        #pragma unroll
        for (int j = 0; j < 4; ++j) d[i][j] = 0;

    fetch(x, a.input, a.input_stride, m0 + row, a.rows, k4, a.depth);
    fetch(w, a.weight, a.weight_stride, n0 + row, a.columns, k4, a.depth);
    int half = 0;
    for (int64_t k = 0; k < a.depth; k += BK, half ^= 1) {
        put(xs[half], x, row, k4);
        put(ws[half], w, row, k4);
        __syncthreads();                /* one a slab: whoever writes this half again has passed the next one, so all have read it */
        fetch(x, a.input, a.input_stride, m0 + row, a.rows, k + BK + k4, a.depth);
        fetch(w, a.weight, a.weight_stride, n0 + row, a.columns, k + BK + k4, a.depth);
        SIMT_SLAB(d, xs[half], ws[half], m, n);
    }
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float bias = linear_bias(&a, n0 + n + j);
        #pragma unroll
        for (int i = 0; i < 8; ++i) linear_store(&a, m0 + m + i, n0 + n + j, d[i][j] + bias);
    }
    pdl_release();
}
