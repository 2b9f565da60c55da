/*
 * out = input weight^T for a handful of rows: each warp has two columns, its lanes run along K in 16-byte pieces. The weights are
 * read once: N K elements, 2 M N K operations. Bound by memory.
 *
 *   T     f32, f16 or bf16
 *   ROWS  most rows of input. Rows that are not there repeat the last one and are not stored
 *
 * Rows of input and weight must be 16-byte aligned and K a multiple of a piece.
 */
#include "gemm.cuh"
#include "launch.cuh"
#include "reduce.cuh"

#define WARPS   4
#define COLUMNS 2                                       /* of a warp */
#define PIECE   (16 / (int)sizeof(T))                   /* elements */
#define AHEAD   (ROWS == 1 ? 4 : 2)                     /* pieces of each column in flight */

extern "C" __global__ __launch_bounds__(32 * WARPS, 4) void linear_vector(const __grid_constant__ linear_args batch)
{
    const linear_args a = linear_batch(&batch, blockIdx.y);
    const int     lane = threadIdx.x % 32;
    const int64_t n    = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * COLUMNS;
    if (n >= a.columns) return;

    const uint4 *w[COLUMNS], *x[ROWS];
    #pragma unroll
    for (int c = 0; c < COLUMNS; ++c) w[c] = (const uint4 *)((const T *)a.weight + (n + c < a.columns ? n + c : n) * a.weight_stride);
    #pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = (const uint4 *)((const T *)a.input + (r < a.rows ? r : a.rows - 1) * a.input_stride);
    const int64_t pieces = a.depth / PIECE;

    pdl_wait();
    float sum[ROWS][COLUMNS];
    #pragma unroll
    for (int r = 0; r < ROWS; ++r)
        #pragma unroll
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] = 0;

    #pragma unroll 1
    for (int64_t p = lane; p < pieces; p += 32 * AHEAD) {
        uint4 ahead[AHEAD][COLUMNS];
        #pragma unroll
        for (int i = 0; i < AHEAD; ++i)                 /* all loads of weights first */
            #pragma unroll
            for (int c = 0; c < COLUMNS; ++c) ahead[i][c] = p + 32 * i < pieces ? w[c][p + 32 * i] : make_uint4(0, 0, 0, 0);
        #pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            if (p + 32 * i >= pieces) continue;
            float u[COLUMNS][PIECE];
            #pragma unroll
            for (int c = 0; c < COLUMNS; ++c) unpack16(u[c], ahead[i][c], (const T *)0);
            #pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float v[PIECE];
                unpack16(v, x[r][p + 32 * i], (const T *)0);
                #pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
                    #pragma unroll
                    for (int e = 0; e < PIECE; ++e) sum[r][c] = fmaf(v[e], u[c][e], sum[r][c]);
            }
        }
    }

    float mine = 0;                                     /* lane r * COLUMNS + c stores that sum */
    #pragma unroll
    for (int r = 0; r < ROWS; ++r)
        #pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const float total = warp_sum(sum[r][c]);
            if (lane == r * COLUMNS + c) mine = total;
        }
    if (lane < ROWS * COLUMNS) linear_store(&a, lane / COLUMNS, n + lane % COLUMNS, mine + linear_bias(&a, n + lane % COLUMNS));
    pdl_release();
}
