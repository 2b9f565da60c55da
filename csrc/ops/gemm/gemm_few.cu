/*
 * out = input weight^T for up to 8 rows of input: a block has 16 columns and walks all of K. Its warps have a slab of 64 in K each in turn; lanes load
 * the very pieces of weight and input that are their fragments of mma.sync straight into registers, several slabs ahead. No shared memory,
 * and nobody waits for anybody until K is done. The weights are read once: N K elements, 2 M N K operations. Bound by memory.
 *
 *   T         f16 or bf16
 *   EIGHTS    most rows of input, in eights
 *   WARPS     share K
 *   AHEAD     slabs that a warp has on their way
 *   RESIDENT  blocks that fit a multiprocessor: with 2, the next kernel's are there while this one runs
 *
 * Sums of the warps are added in their order. Rows of input and weight must be 16-byte aligned and K a multiple of 8.
 *
 * In a slab, lane (g = lane / 4, t = lane % 4) has the pieces of 8 in K at 8 t and 32 + 8 t of rows g and g + 8: elements 0 and 1 of a piece are the
 * lane's k 2 t and 2 t + 1 of one mma.sync, 2 and 3 its 2 t + 8 and 2 t + 9, the others the same of a second one. Input has its k in the same places.
 */
#include "gemm.cuh"
#include "gemm_once.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "tma.cuh"

#define COLUMNS LINEAR_FEW_COLUMNS
#define ROWS    (8 * EIGHTS)
#define PIECES  (4 + 2 * EIGHTS)                /* of 16 bytes that a lane has of a slab: weight, then input */
#define PITCH   (COLUMNS + 4)                   /* of a row of sums: no bank is met twice */
#define CHAINS  (2 / EIGHTS)                    /* of products, so that two can be under way */

extern "C" __global__ __launch_bounds__(32 * WARPS, RESIDENT) void linear_few(const __grid_constant__ linear_few_args a)
{
    __shared__ float sums[WARPS][ROWS * PITCH];
    const int        lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, row = lane / 4, pieces = (int)a.l.depth / 8;
    const int64_t    n = (int64_t)blockIdx.x * COLUMNS, last = a.l.columns - 1;
    const int        slabs = (pieces + 7) / 8, each = slabs > warp ? (slabs - warp + WARPS - 1) / WARPS : 0;
    /* The kernel before this one may still run: weights may come as far as L2, where all see the same. */
    if (a.ahead > 0 && warp == 0 && lane < COLUMNS && n + lane <= last && pieces > 0)
        l2_prefetch((const T *)a.l.weight + (n + lane) * a.l.weight_stride, (pieces < a.ahead ? pieces : a.ahead) * 16);

    const uint4 *low  = (const uint4 *)((const T *)a.l.weight + (n + row < last ? n + row : last) * a.l.weight_stride);
    const uint4 *high = (const uint4 *)((const T *)a.l.weight + (n + row + 8 < last ? n + row + 8 : last) * a.l.weight_stride);
    const uint4 *x[EIGHTS];
    bool         there[EIGHTS];
    #pragma unroll
    for (int e = 0; e < EIGHTS; ++e) {
        there[e] = row + 8 * e < (int)a.l.rows;
        x[e]     = (const uint4 *)((const T *)a.l.input + (there[e] ? row + 8 * e : 0) * a.l.input_stride);
    }
    pdl_wait();
    if (a.release == 0) pdl_release();

    uint4 v[AHEAD][PIECES];
    int   p = warp * 8 + lane % 4;              /* the piece of the slab that is asked for next */
    #define LOAD(s) \
    do { \
        _Pragma("unroll") for (int j_ = 0; j_ < 2; ++j_) \
        { \
            const bool inside_                                                          = p + 4 * j_ < pieces; \
            v[s][j_]                                                                    = load_once(low + p + 4 * j_, inside_); \
            v[s][2 + j_]                                                                = load_once(high + p + 4 * j_, inside_); \
            _Pragma("unroll") for (int e_ = 0; e_ < EIGHTS; ++e_) v[s][4 + 2 * e_ + j_] = load_once(x[e_] + p + 4 * j_, inside_ && there[e_]); \
        } \
        p += 8 * WARPS; \
    } while (0)
    #pragma unroll
    for (int s = 0; s < AHEAD; ++s) LOAD(s);

    float d[CHAINS][EIGHTS][4];
    #pragma unroll
    for (int j = 0; j < CHAINS; ++j)
        #pragma unroll
        for (int e = 0; e < EIGHTS; ++e)
            #pragma unroll
            for (int c = 0; c < 4; ++c) d[j][e][c] = 0;

    #pragma unroll 1
    for (int i = 0; i < each; i += AHEAD) {
        if (i > 0 && i >= a.release) pdl_release();
        #pragma unroll
        for (int s = 0; s < AHEAD; ++s) {
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                const uint4    u = v[s][j], w = v[s][2 + j];
                const uint32_t w0[4] = { u.x, w.x, u.y, w.y }, w1[4] = { u.z, w.z, u.w, w.w };
                #pragma unroll
                for (int e = 0; e < EIGHTS; ++e) {
                    const uint4    y     = v[s][4 + 2 * e + j];
                    const uint32_t x0[2] = { y.x, y.y }, x1[2] = { y.z, y.w };
                    mma_m16n8k16(d[j % CHAINS][e], w0, x0, (const T *)0);
                    mma_m16n8k16(d[j % CHAINS][e], w1, x1, (const T *)0);
                }
            }
            LOAD(s);
        }
    }

    #pragma unroll
    for (int e = 0; e < EIGHTS; ++e)
        #pragma unroll
        for (int c = 0; c < 4; ++c) sums[warp][(8 * e + lane % 4 * 2 + c % 2) * PITCH + row + c / 2 * 8] = d[0][e][c] + (CHAINS > 1 ? d[CHAINS - 1][e][c] : 0);
    __syncthreads();
    const int m = (int)threadIdx.x / COLUMNS, column = (int)threadIdx.x % COLUMNS;
    if (m >= ROWS) return;
    float sum = 0;
    #pragma unroll
    for (int s = 0; s < WARPS; ++s) sum += sums[s][m * PITCH + column];
    linear_store(&a.l, m, n + column, sum + linear_bias(&a.l, n + column));
}
