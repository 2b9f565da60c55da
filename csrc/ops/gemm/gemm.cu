/*
 * out = input weight^T on the matrix units of sm_80: one block a tile of BM x BN outputs, slabs of BK in K through a ring of STAGES
 * pieces of shared memory filled by cp.async, fragments by ldmatrix, f32 sums in registers. M K + N K elements read (each once a
 * tile that needs it, from L2), 2 M N K operations: bound by the matrix units, or by memory when M is small.
 *
 *   T           f16 or bf16
 *   BM, BN, BK  the tile; BK is 32 or a multiple of 64
 *   WM, WN, WK  warps along m, n and k. Each of the WK takes its share of a slab; their sums are added in order at the end
 *   STAGES      slabs in shared memory
 *
 * Rows of input and weight must be 16-byte aligned and K a multiple of 8. With WK = 1 an output is one chain of products over K,
 * the same in every tile.
 *
 * A row of a slab is BK / 8 pieces of 16 bytes. Piece p of row r lies at place p ^ r (the low bits), so that the 8 rows of one
 * ldmatrix matrix, and the pieces of one copy, meet every bank once:
 *
 *     BK = 32, two rows in a line of 128 bytes        BK >= 64
 *     r 0,1   0 1 2 3  0 1 2 3                        r 0   0 1 2 3 4 5 6 7
 *     r 2,3   1 0 3 2  1 0 3 2                        r 1   1 0 3 2 5 4 7 6
 *     r 4,5   2 3 0 1  2 3 0 1                        r 2   2 3 0 1 6 7 4 5
 *     r 6,7   3 2 1 0  3 2 1 0                        ...
 */
#include "cp_async.cuh"
#include "gemm.cuh"
#include "launch.cuh"
#include "mma.cuh"

#define THREADS   (32 * WM * WN * WK)
#define PIECES    (BK / 8)                      /* in a row of a slab */
#define PASS_ROWS (THREADS / PIECES)            /* rows that the block copies at once */
#define STAGE     ((BM + BN) * BK * 2)          /* bytes */
#define MT        (BM / WM / 16)                /* 16x8 products of a warp, along m */
#define NT        (BN / WN / 8)                 /* and along n; even */
#define STEPS     (BK / 16 / WK)                /* of 16 in k, that a warp does in a slab */

#if BM % PASS_ROWS || BN % PASS_ROWS || NT % 2 || BK % (16 * WK) || (BK != 32 && BK % 64)
#error "the macros do not fit each other"
#endif

DEVICE uint32_t place(int row, int piece)
{
    return (uint32_t)(row * PIECES + (PIECES == 4 ? piece ^ (row >> 1 & 3) : piece ^ (row & 7))) * 16;
}

extern "C" __global__ __launch_bounds__(THREADS) void linear_mma(const __grid_constant__ linear_args batch)
{
    const linear_args a = linear_batch(&batch, blockIdx.y);
    extern __shared__ __align__(128) uint8_t slabs[];                   /* [STAGES] of input [BM][BK], weight [BN][BK] */
    const int                                lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int                                wm = warp % WM, wn = warp / WM % WN, wk = warp / (WM * WN);
    int64_t                                  m0, n0;
    linear_tile(&a, BM, BN, &m0, &n0);

    /* What this thread copies of each slab: one piece of every PASS_ROWS-th row. */
    const int      row = (int)threadIdx.x / PIECES, piece = (int)threadIdx.x % PIECES;
    const T       *x    = (const T *)a.input + (m0 + row) * a.input_stride + piece * 8;
    const T       *w    = (const T *)a.weight + (n0 + row) * a.weight_stride + piece * 8;
    int64_t        k    = piece * 8;                                              /* where the next copy begins */
    const uint32_t base = shared_address(slabs);

    #define COPY_SLAB(stage) \
    do { \
        if (k - piece * 8 < a.depth) { \
            const uint32_t to_ = base + (uint32_t)(stage) * STAGE; \
            _Pragma("unroll") for (int r_ = 0; r_ < BM; r_ += PASS_ROWS) \
                cp_async16(to_ + place(row + r_, piece), x + r_ * a.input_stride, k < a.depth && m0 + row + r_ < a.rows); \
            _Pragma("unroll") for (int r_ = 0; r_ < BN; r_ += PASS_ROWS) \
                cp_async16(to_ + BM * BK * 2 + place(row + r_, piece), w + r_ * a.weight_stride, \
                           k < a.depth && n0 + row + r_ < a.columns); \
            k += BK, x += BK, w += BK; \
        } \
        cp_async_commit();      /* an empty group keeps the count */ \
    } while (0)

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

    int stage = 0, free_stage = STAGES - 1;
    for (int64_t done = 0; done < a.depth; done += BK) {
        cp_async_wait(STAGES - 2);
        __syncthreads();                        /* the slab is there for all, and all have left the one that is filled next */
        COPY_SLAB(free_stage);
        const uint32_t xs = base + (uint32_t)stage * STAGE, ws = xs + BM * BK * 2;
        #pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int p = (wk * STEPS + s) * 2;
            uint32_t  fx[MT][4], fw[NT / 2][4];
            #pragma unroll
            for (int i = 0; i < MT; ++i)        /* lanes 0-15: rows, first half of k; lanes 16-31: second half */
                ldmatrix_x4(fx[i], xs + place((wm * MT + i) * 16 + lane % 16, p + lane / 16));
            #pragma unroll
            for (int j = 0; j < NT / 2; ++j)    /* two blocks of 8 columns, each both halves of k */
                ldmatrix_x4(fw[j], ws + place((wn * NT / 2 + j) * 16 + lane % 8 + lane / 16 * 8, p + lane / 8 % 2));
            #pragma unroll
            for (int i = 0; i < MT; ++i)
                #pragma unroll
                for (int j = 0; j < NT; ++j) mma_m16n8k16(d[i][j], fx[i], &fw[j / 2][j % 2 * 2], (const T *)0);
        }
        stage      = stage + 1 == STAGES ? 0 : stage + 1;
        free_stage = free_stage + 1 == STAGES ? 0 : free_stage + 1;
    }

#if WK > 1
    float *shares = (float *)slabs + (warp % (WM * WN)) * (MT * NT * 4 * 32) + lane;        /* [WK - 1][WM * WN][MT * NT * 4][32] */
    cp_async_wait(0);
    __syncthreads();
    if (wk > 0) {
        #pragma unroll
        for (int i = 0; i < MT * NT * 4; ++i) shares[((wk - 1) * WM * WN * MT * NT * 4 + i) * 32] = d[i / 4 / NT][i / 4 % NT][i % 4];
    }
    __syncthreads();
    if (wk == 0) {
        for (int o = 0; o < WK - 1; ++o)
            #pragma unroll
            for (int i = 0; i < MT * NT * 4; ++i) d[i / 4 / NT][i / 4 % NT][i % 4] += shares[(o * WM * WN * MT * NT * 4 + i) * 32];
    }
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
