/*
 * Quantises groups of neighbours, each with its own scale. Every element is read once and stays in registers between the maximum and the
 * codes. Bound by memory: ELEMENTS of each thread are in flight (with FUSE twice as many), and few enough registers to fill the machine.
 *
 * 2^lanes_log2 threads of a warp share a group, ELEMENTS each, in pieces of 16 bytes that alternate between them. A block takes a tile:
 * 2^columns_log2 groups of some rows. So a place in memory takes shifts and no division. Tiles are along x down the rows of a batch and
 * along y across them; z counts the batches.
 *
 *   T         f32, f16 or bf16
 *   ELEMENTS  of a thread: 8 or 16. 0: any group and alignment; a warp takes a group and reads it twice
 *   FUSE      1: the input is [gate | up], and silu(gate) * up is quantised
 */
#include "quant.h"
#include "quant_silu.h"
#include "launch.cuh"
#include "quant_group.cuh"
#include "reduce.cuh"

#define THREADS 256

#if FUSE
DEVICE float silu_and_mul(float gate, float up) { return rounded(__fmul_rn(rounded(quant_silu(gate)), up)); }
#endif

#if ELEMENTS == 0

DEVICE float value(const quant_groups_args &a, const T *x)
{
#if FUSE
    return silu_and_mul(to_f32(x[0]), to_f32(x[a.groups * a.group]));
#else
    return to_f32(x[0]);
#endif
}

extern "C" __global__ __launch_bounds__(THREADS) void quant_groups(const __grid_constant__ quant_groups_args a)
{
    const int     lane = threadIdx.x % 32;
    const int64_t n = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32, row = n / a.groups, column = n % a.groups;
    const int64_t batch = row / a.batch_rows, line = row % a.batch_rows;
    pdl_wait();
    if (row < a.rows && !(a.masked_m && line >= a.masked_m[batch])) {       /* the same for the whole warp */
        const T *x    = (const T *)a.input + row * a.input_stride + column * a.group;
        uint8_t *q    = a.q + row * a.q_stride + column * a.group;
        float    amax = 0;
        for (int64_t i = lane; i < a.group; i += 32) amax = fmaxf(amax, fabsf(value(a, x + i)));
        const quant_scaling k = quant_group_scaling(warp_max(amax), &a);
        for (int64_t i = lane; i < a.group; i += 32) {
            float    v[4] = { value(a, x + i) };
            uint32_t code;
            encode(&code, v, 4, a, k);
            q[i] = (uint8_t)code;
        }
        if (lane == 0) store_scale(a, batch * a.s_batch + line * a.s_row, column, k);
    }
    pdl_release();
}

#else

#define PIECE  (16 / (int)sizeof(T))
#define PIECES (ELEMENTS / PIECE)
#define BLOCKS (FUSE ? 4 : 6)                           /* on a multiprocessor */

#if FUSE
/*
 * silu by the hardware's exponential and reciprocal is within 32 units in the last place of quant_silu, for results that are not tiny:
 * 2^-22 and 1 unit by their definition, and half a unit for each unit of |gate|, here at most 15. Both round to the same T but near the
 * middle between two of them; there, and where the result is tiny, quant_silu decides.
 */
#define MARGIN 32u

DEVICE float fast_silu(float g)
{
    float e, r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(g * -1.44269504f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
    return g * r;
}

/* At most 2 MARGIN where the lowest `cut` bits, which rounding takes away, are within MARGIN of the middle. */
DEVICE uint32_t from_middle(float v, uint32_t cut) { return (__float_as_uint(v) - ((1u << (cut - 1)) - MARGIN)) & ((1u << cut) - 1); }

/* v = round(round(silu(v)) * up) */
DEVICE void fuse(float v[PIECE], const float up[PIECE], uint32_t cut, float tiny)
{
    float    s[PIECE], least = INF;
    uint32_t nearest = ~0u;
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) {
        s[i]             = fast_silu(v[i]);
        least            = fminf(least, fabsf(s[i]));
        const uint32_t d = from_middle(s[i], cut);
        nearest          = d < nearest ? d : nearest;
    }
    if (nearest <= 2 * MARGIN || !(least >= tiny)) {
        #pragma unroll
        for (int i = 0; i < PIECE; ++i)
            if (from_middle(s[i], cut) <= 2 * MARGIN || !(fabsf(s[i]) >= tiny)) s[i] = quant_silu(v[i]);
    }
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) v[i] = rounded(__fmul_rn(rounded(s[i]), up[i]));
}
DEVICE void fuse(float v[PIECE], const float up[PIECE], const bf16 *) { fuse(v, up, 16, 5e-6f); }
DEVICE void fuse(float v[PIECE], const float up[PIECE], const f16 *) { fuse(v, up, 13, 1.3e-4f); }        /* above its subnormals */
DEVICE void fuse(float v[PIECE], const float up[PIECE], const f32 *)
{
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) v[i] = silu_and_mul(v[i], up[i]);
}
#endif

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void quant_groups(const __grid_constant__ quant_groups_args a)
{
    const int     lane = (int)threadIdx.x & ((1 << a.lanes_log2) - 1), tile = a.lanes_log2 + a.columns_log2;
    const int64_t line = (int64_t)blockIdx.x * (THREADS >> tile) + (threadIdx.x >> tile), row = blockIdx.z * a.batch_rows + line;
    const int     column = (int)((blockIdx.y << a.columns_log2) + (threadIdx.x >> a.lanes_log2 & ((1 << a.columns_log2) - 1)));
    const int     step   = PIECE << a.lanes_log2;
    const int64_t first  = column * a.group + lane * PIECE;
    const T      *x      = (const T *)a.input + row * a.input_stride + first;
    const uint4   zero   = make_uint4(0, 0, 0, 0);

    pdl_wait();
    const bool live = line < (a.masked_m ? a.masked_m[blockIdx.z] : a.batch_rows) && line < a.batch_rows && column < a.groups;
    uint4      p[PIECES];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) p[i] = live ? *(const uint4 *)(x + i * step) : zero;
    float v[ELEMENTS], amax = 0;
#if FUSE
    uint4 up[PIECES];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) up[i] = live ? *(const uint4 *)(x + a.groups * a.group + i * step) : zero;
#endif
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        unpack16(v + i * PIECE, p[i], (const T *)0);
#if FUSE
        float u[PIECE];
        unpack16(u, up[i], (const T *)0);
        fuse(v + i * PIECE, u, (const T *)0);
#endif
    }
    #pragma unroll
    for (int i = 0; i < ELEMENTS; ++i) amax = fmaxf(amax, fabsf(v[i]));
    for (int o = 1 << a.lanes_log2 >> 1; o; o >>= 1) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));

    const quant_scaling k = quant_group_scaling(amax, &a);
    uint32_t            codes[ELEMENTS / 4];
    encode(codes, v, ELEMENTS, a, k);
    if (live) {
        uint8_t *q = a.q + row * a.q_stride + first;
        #pragma unroll
        for (int i = 0; i < PIECES; ++i) store_codes(q + i * step, codes + i * PIECE / 4, PIECE);
    }
    const int64_t place = blockIdx.z * a.s_batch + line * a.s_row;
    if (!a.ue8m0) {
        if (live && lane == 0) ((float *)a.s)[place + column * a.s_column] = k.s;
    } else {                                            /* four columns, all in one warp, make a word; those behind the last add 0 */
        uint32_t word = live ? (uint32_t)(k.exponent + 127) << 8 * (column & 3) : 0;
        if (a.columns_log2 > 0) word |= __shfl_xor_sync(~0u, word, 1 << a.lanes_log2);
        if (a.columns_log2 > 1) word |= __shfl_xor_sync(~0u, word, 2 << a.lanes_log2);
        if (live && lane == 0 && (column & 3) == 0) ((uint32_t *)a.s)[place + (column >> 2) * a.s_column] = word;
    }
    pdl_release();
}

#endif
