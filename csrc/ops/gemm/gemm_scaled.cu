/*
 * out = input weight^T of 8-bit numbers, with scales, on the matrix units of sm_80: one block a tile of BM x BN outputs, slabs of BK in K
 * through a ring of STAGES pieces of shared memory, fragments by ldmatrix, sums in registers. Integers are multiplied as they are; 8-bit
 * floats become f16, which is exact, so that every GPU runs them, with f32 sums. M K + N K elements read (each once a tile that needs it, from L2),
 * 2 M N K operations: bound by the matrix units, or by memory when M is small.
 *
 *   KIND     E4M3: both operands; FLOATS: e4m3 or e5m2, each operand its own; INTEGERS: s8
 *   BM, BN, BK, WM, WN, WK, STAGES   gemm_mma.cuh explains them; BK is 64 or 128
 *   PIECES   1: copies of 16 bytes (cp.async); rows must be 16-byte aligned. 0: byte by byte, any address and stride
 *
 * With WK = 1 an output is one chain of products over K, the same in every tile. The order within 16 neighbours in K is the instruction's,
 * after a permutation that both operands share.
 */
#include "decode.cuh"
#include "gemm_scaled.cuh"
#include "launch.cuh"

#define E4M3     0
#define FLOATS   1
#define INTEGERS 2

#if KIND == INTEGERS
typedef int sum;
#else
typedef float sum;
#endif
#define EACH                         16
#define COPY_PIECE(to, from, inside) copy_piece(to, from, k, a.depth, inside)
#include "gemm_mma.cuh"

/* 16 bytes of a row from element k on; zeros beyond the depth and for rows that are not there. */
DEVICE void copy_piece(uint32_t to, const uint8_t *from, int64_t k, int64_t depth, bool inside)
{
#if PIECES
    const int64_t rest = depth - k;
    cp_async16_part(to, from, !inside || rest <= 0 ? 0 : rest < 16 ? (int)rest
                                                                   : 16);
#else
    uint32_t words[4];
    #pragma unroll
    for (int w = 0; w < 4; ++w) {
        words[w] = 0;
        #pragma unroll
        for (int e = 0; e < 4; ++e)
            if (inside && k + 4 * w + e < depth) words[w] |= (uint32_t)from[4 * w + e] << 8 * e;
    }
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
#endif
}

#if KIND != INTEGERS
/* A register of four codes to its two pairs. */
DEVICE void decode(uint32_t pairs[2], uint32_t codes, bool e5m2)
{
    if (KIND == FLOATS && e5m2) e5m2x4_to_f16(pairs, codes);
    else e4m3x4_to_f16(pairs, codes);
}
#endif

extern "C" __global__ __launch_bounds__(THREADS, 1) void scaled_mma(const __grid_constant__ scaled_args a)
{
    extern __shared__ __align__(128) uint8_t slabs[];                   /* [STAGES] of input [BM][BK], weight [BN][BK] */
    const int                                lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int                                wm = warp % WM, wn = warp / WM % WN, wk = warp / (WM * WN);

    /* Tiles go down the rows in bands of 8 before they go on to the next columns; then comes the next of the batch. */
    const int64_t down = (a.rows + BM - 1) / BM, across = (a.columns + BN - 1) / BN, batch = blockIdx.x / (down * across), id = blockIdx.x % (down * across);
    const int64_t band = id / (8 * across), rest = id % (8 * across), high = down - band * 8 < 8 ? down - band * 8 : 8;
    const int64_t m0 = (band * 8 + rest % high) * BM, n0 = rest / high * BN;

    /* What this thread copies of each slab: one piece of every PASS_ROWS-th row. */
    const int      row = (int)threadIdx.x / ROW_PIECES, piece = (int)threadIdx.x % ROW_PIECES;
    const uint8_t *x    = (const uint8_t *)a.input + batch * a.input_batch + (m0 + row) * a.input_stride + piece * EACH;
    const uint8_t *w    = (const uint8_t *)a.weight + batch * a.weight_batch + (n0 + row) * a.weight_stride + piece * EACH;
    int64_t        k    = piece * EACH;                                             /* where the next copy begins */
    const uint32_t base = shared_address(slabs);

    pdl_wait();
    #pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) COPY_SLAB(s);

    sum d[MT][NT][4];
    #pragma unroll
    for (int i = 0; i < MT; ++i)
        #pragma unroll
        for (int j = 0; j < NT; ++j)
            #pragma unroll
            for (int e = 0; e < 4; ++e) d[i][j][e] = 0;

#if KIND != INTEGERS
    const bool x_e5m2 = a.input_dtype == SGK_E5M2, w_e5m2 = a.weight_dtype == SGK_E5M2;
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
#if KIND == INTEGERS
            #pragma unroll
            for (int i = 0; i < MT; ++i)
                #pragma unroll
                for (int j = 0; j < NT; ++j) mma_m16n8k32(d[i][j], fx[i], &fw[j / 2][j % 2 * 2]);
#else
            #pragma unroll
            for (int h = 0; h < 2; ++h) {       /* 16 in k: a register's first two codes are k 2t, 2t+1 of the instruction, its last two 2t+8, 2t+9 */
                uint32_t b[NT][2];
                #pragma unroll
                for (int j = 0; j < NT; ++j) decode(b[j], fw[j / 2][j % 2 * 2 + h], w_e5m2);
                #pragma unroll
                for (int i = 0; i < MT; ++i) {
                    uint32_t top[2], low[2];
                    decode(top, fx[i][2 * h], x_e5m2);
                    decode(low, fx[i][2 * h + 1], x_e5m2);
                    const uint32_t f[4] = { top[0], low[0], top[1], low[1] };
                    #pragma unroll
                    for (int j = 0; j < NT; ++j) mma_m16n8k16(d[i][j], f, b[j], (const f16 *)0);
                }
            }
#endif
        }
        stage      = stage + 1 == STAGES ? 0 : stage + 1;
        free_stage = free_stage + 1 == STAGES ? 0 : free_stage + 1;
    }

#if WK > 1
    ADD_SHARES(d);
    if (wk == 0)
#endif
    {
        void *const out   = scaled_out(&a, batch);
        const bool  pairs = scaled_pairs(&a, out);
        #pragma unroll
        for (int j = 0; j < NT; ++j) {
            const int64_t n  = n0 + (wn * NT + j) * 8 + lane % 4 * 2;
            const float   b0 = scaled_bias(&a, n), b1 = scaled_bias(&a, n + 1);
            const float   s0 = n < a.columns ? a.weight_scales[n * a.weight_scale_step] : 0.0f, s1 = n + 1 < a.columns ? a.weight_scales[(n + 1) * a.weight_scale_step] : 0.0f;
            #pragma unroll
            for (int i = 0; i < MT; ++i) {
                #pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int64_t m     = m0 + (wm * MT + i) * 16 + lane / 4 + 8 * h;
                    const float   scale = m < a.rows ? a.input_scales[m * a.input_scale_step] : 0.0f;
                    scaled_store2(&a, out, m, n, (float)d[i][j][2 * h] * s0 * scale + b0, (float)d[i][j][2 * h + 1] * s1 * scale + b1, pairs);
                }
            }
        }
    }
    pdl_release();
}
