/*
 * out = input weight^T on the matrix units of sm_80: one block a tile of BM x BN outputs, slabs of BK in K through a ring of STAGES
 * pieces of shared memory filled by cp.async, fragments by ldmatrix, f32 sums in registers. M K + N K elements read (each once a
 * tile that needs it, from L2), 2 M N K operations: bound by the matrix units, or by memory when M is small.
 *
 *   T   f16 or bf16
 *   BM, BN, BK, WM, WN, WK, STAGES   gemm_mma.cuh explains them; BK is 32 or a multiple of 64
 *   CHAIN                            slabs whose products are one chain of sums; the sums of chains are added in their order, in f32 that rounds. 0: all of
 *                                    K is one chain. The matrix units cut what they add: for results in f32, chains are short
 *
 * Rows of input and weight must be 16-byte aligned and K a multiple of 8. With WK = 1 and without CHAIN an output is one chain of products over K,
 * the same in every tile.
 */
#include "gemm.cuh"
#include "launch.cuh"

#define EACH 8
typedef float sum;
#define COPY_PIECE(to, from, inside) cp_async16(to, from, k < a.depth && (inside))
#include "gemm_mma.cuh"

extern "C" __global__ __launch_bounds__(THREADS) void linear_mma(const __grid_constant__ linear_args batch)
{
    const linear_args a = linear_batch(&batch, blockIdx.y);
    extern __shared__ __align__(128) uint8_t slabs[];                   /* [STAGES] of input [BM][BK], weight [BN][BK] */
    const int                                lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int                                wm = warp % WM, wn = warp / WM % WN, wk = warp / (WM * WN);
    int64_t                                  m0, n0;
    linear_tile(&a, BM, BN, blockIdx.x, &m0, &n0);

    /* What this thread copies of each slab: one piece of every PASS_ROWS-th row. */
    const int      row = (int)threadIdx.x / ROW_PIECES, piece = (int)threadIdx.x % ROW_PIECES;
    const T       *x    = (const T *)a.input + (m0 + row) * a.input_stride + piece * EACH;
    const T       *w    = (const T *)a.weight + (n0 + row) * a.weight_stride + piece * EACH;
    int64_t        k    = piece * EACH;                                              /* where the next copy begins */
    const uint32_t base = shared_address(slabs);

    pdl_wait();
    #pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) COPY_SLAB(s);

    float d[MT][NT][4];
    #pragma unroll
    for (int i = 0; i < MT; ++i)
        #pragma unroll
        for (int j = 0; j < NT; ++j)
            #pragma unroll
            for (int e = 0; e < 4; ++e) d[i][j][e] = 0;

#if CHAIN
    float total[MT][NT][4];
    int   left = CHAIN;
    #pragma unroll
    for (int i = 0; i < MT * NT * 4; ++i) total[i / 4 / NT][i / 4 % NT][i % 4] = 0;
#endif
    int stage = 0, free_stage = STAGES - 1;
    for (int64_t done = 0; done < a.depth; done += BK) {
        cp_async_wait(STAGES - 2);
        __syncthreads();                        /* the slab is there for all, and all have left the one that is filled next */
        COPY_SLAB(free_stage);
        const uint32_t xs = base + (uint32_t)stage * STAGE, ws = xs + BM * ROW_PIECES * 16;
        #pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int p = (wk * STEPS + s) * 2;
            uint32_t  fx[MT][4], fw[NT / 2][4];
            LOAD_FRAGMENTS(fx, fw, xs, ws, p);
            #pragma unroll
            for (int i = 0; i < MT; ++i)
                #pragma unroll
                for (int j = 0; j < NT; ++j) mma_m16n8k16(d[i][j], fx[i], &fw[j / 2][j % 2 * 2], (const T *)0);
        }
        stage      = stage + 1 == STAGES ? 0 : stage + 1;
        free_stage = free_stage + 1 == STAGES ? 0 : free_stage + 1;
#if CHAIN
        if (--left == 0) {
            #pragma unroll
            for (int i = 0; i < MT * NT * 4; ++i) total[i / 4 / NT][i / 4 % NT][i % 4] += d[i / 4 / NT][i / 4 % NT][i % 4], d[i / 4 / NT][i / 4 % NT][i % 4] = 0;
            left = CHAIN;
        }
#endif
    }
#if CHAIN
    #pragma unroll
    for (int i = 0; i < MT * NT * 4; ++i) d[i / 4 / NT][i / 4 % NT][i % 4] += total[i / 4 / NT][i / 4 % NT][i % 4];
#endif

#if WK > 1
    ADD_SHARES(d);
    if (wk == 0)
#endif
    {
        const bool pairs = linear_pairs(&a);
        #pragma unroll
        for (int j = 0; j < NT; ++j) {
            const int64_t n  = n0 + (wn * NT + j) * 8 + lane % 4 * 2;
            const float   b0 = linear_bias(&a, n), b1 = linear_bias(&a, n + 1);
            #pragma unroll
            for (int i = 0; i < MT; ++i) {
                const int64_t m = m0 + (wm * MT + i) * 16 + lane / 4;
                linear_store2(&a, m, n, d[i][j][0] + b0, d[i][j][1] + b1, pairs);
                linear_store2(&a, m + 8, n, d[i][j][2] + b0, d[i][j][3] + b1, pairs);
            }
        }
    }
    pdl_release();
}
