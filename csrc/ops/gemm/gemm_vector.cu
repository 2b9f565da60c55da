/*
 * out = input weight^T for a handful of rows: SHARE warps have two columns and share K, their lanes run along K in 16-byte pieces. The
 * weights are read once: N K elements, 2 M N K operations. Bound by memory. A lane's sum is that of chains of 64 multiply-adds.
 *
 *   T      f32, f16 or bf16
 *   ROWS   most rows of input. Rows that are not there repeat the last one and are not stored
 *   SHARE  1, or all warps of the block: for few columns. Their sums are added in order
 *
 * Rows of input and weight must be 16-byte aligned and K a multiple of a piece.
 */
#include "gemm.cuh"
#include "launch.cuh"
#include "reduce.cuh"
#if __CUDA_ARCH__ >= 900
#include "tma.cuh"
#endif

#define WARPS   (SHARE == 1 ? 4 : SHARE)
#define COLUMNS 2                                       /* of a warp */
#define PIECE   (16 / (int)sizeof(T))                   /* elements */
#define AHEAD   (ROWS == 1 || (SHARE > 1 && ROWS <= 4) ? 4 : 2)      /* pieces of each column in flight */
#define STEP    (32 * SHARE)                            /* from a lane's piece to its next */
#define CHAIN   (64 / (AHEAD * PIECE))                  /* turns of the loop, of 64 elements a lane, after which the sums are added to those of all */
#define MOST    1024                                    /* pieces of a column to L2 in advance */

DEVICE void load_pieces(uint4 (&to)[AHEAD][COLUMNS], const uint4 *const (&w)[COLUMNS], int64_t p, int64_t pieces)
{
    #pragma unroll
    for (int i = 0; i < AHEAD; ++i)
        #pragma unroll
        for (int c = 0; c < COLUMNS; ++c) to[i][c] = p + STEP * i < pieces ? w[c][p + STEP * i] : make_uint4(0, 0, 0, 0);
}

extern "C" __global__ __launch_bounds__(32 * WARPS, SHARE == 1 ? 4 : 1) void linear_vector(const __grid_constant__ linear_args batch)
{
    const linear_args a    = linear_batch(&batch, blockIdx.y);
    const int         lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t     n = ((int64_t)blockIdx.x * (WARPS / SHARE) + warp / SHARE) * COLUMNS;
    if (n >= a.columns) return;

    const uint4 *w[COLUMNS], *x[ROWS];
    #pragma unroll
    for (int c = 0; c < COLUMNS; ++c) w[c] = (const uint4 *)((const T *)a.weight + (n + c < a.columns ? n + c : n) * a.weight_stride);
    #pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = (const uint4 *)((const T *)a.input + (r < a.rows ? r : a.rows - 1) * a.input_stride);
    const int64_t pieces = a.depth / PIECE;
    int64_t       p      = warp % SHARE * 32 + lane;
    uint4         now[AHEAD][COLUMNS];
#if __CUDA_ARCH__ >= 900
    /* The kernel before this one may still run: weights may come as far as L2, where all see the same. */
    if (a.early && lane < COLUMNS && warp % SHARE == 0 && pieces > 0) l2_prefetch(lane ? w[1] : w[0], (int)(pieces < MOST ? pieces : MOST) * 16);
#endif
    pdl_wait();
    pdl_release();
    load_pieces(now, w, p, pieces);
    float sum[ROWS][COLUMNS], all[ROWS][COLUMNS];
    #pragma unroll
    for (int r = 0; r < ROWS; ++r)
        #pragma unroll
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] = all[r][c] = 0;

    int turn = 0;
    #pragma unroll 1
    for (; p < pieces; p += STEP * AHEAD) {
        uint4 next[AHEAD][COLUMNS];
        load_pieces(next, w, p + STEP * AHEAD, pieces);
#if SHARE > 1
        uint4 ahead[AHEAD][ROWS];               /* all that is needed is asked for before any of it has come */
        #pragma unroll
        for (int i = 0; i < AHEAD; ++i)
            #pragma unroll
            for (int r = 0; r < ROWS; ++r) ahead[i][r] = p + STEP * i < pieces ? x[r][p + STEP * i] : make_uint4(0, 0, 0, 0);
#endif
        #pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
#if SHARE == 1
            if (p + STEP * i >= pieces) continue;
#endif
            float u[COLUMNS][PIECE];
            #pragma unroll
            for (int c = 0; c < COLUMNS; ++c) unpack16(u[c], now[i][c], (const T *)0);
            #pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                float v[PIECE];
#if SHARE > 1
                unpack16(v, ahead[i][r], (const T *)0);
#else
                unpack16(v, x[r][p + STEP * i], (const T *)0);
#endif
                #pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
                    #pragma unroll
                    for (int e = 0; e < PIECE; ++e) sum[r][c] = fmaf(v[e], u[c][e], sum[r][c]);
            }
        }
        #pragma unroll
        for (int i = 0; i < AHEAD; ++i)
            #pragma unroll
            for (int c = 0; c < COLUMNS; ++c) now[i][c] = next[i][c];
        if (++turn % CHAIN == 0) {
            #pragma unroll
            for (int r = 0; r < ROWS; ++r)
                #pragma unroll
                for (int c = 0; c < COLUMNS; ++c) all[r][c] += sum[r][c], sum[r][c] = 0;
        }
    }

    float mine = 0;                                     /* lane r * COLUMNS + c has that sum */
    #pragma unroll
    for (int r = 0; r < ROWS; ++r)
        #pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const float total = warp_sum(all[r][c] + sum[r][c]);
            if (lane == r * COLUMNS + c) mine = total;
        }
#if SHARE > 1
    __shared__ float shares[SHARE][ROWS * COLUMNS];
    if (lane < ROWS * COLUMNS) shares[warp][lane] = mine;
    __syncthreads();
    if (warp > 0) return;
    mine = 0;
    #pragma unroll
    for (int s = 0; s < SHARE; ++s) mine += lane < ROWS * COLUMNS ? shares[s][lane] : 0;
#endif
    if (lane < ROWS * COLUMNS) linear_store(&a, lane / COLUMNS, n + lane % COLUMNS, mine + linear_bias(&a, n + lane % COLUMNS));
}
