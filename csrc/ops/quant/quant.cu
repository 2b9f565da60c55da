/*
 * Quantises groups of neighbours, each with its own scale. Every element is read once and stays in registers between the maximum and the
 * codes. Bound by memory: ELEMENTS of each thread are in flight (with FUSE twice as many), and few enough registers to fill the machine.
 *
 * 2^lanes_log2 threads of a warp share a group, ELEMENTS each, in pieces of 16 bytes that alternate between them. Groups follow each
 * other through the threads as they do through memory.
 *
 *   T         f32, f16 or bf16
 *   ELEMENTS  of a thread: 8, 16 or 32. 0: any group and alignment; a warp takes a group and reads it twice
 *   LANES     lanes_log2, or -1: as the arguments say
 *   FUSE      1: the input is [gate | up], and silu(gate) * up is quantised
 *   FORM      GROUPS_ANY, or what is compiled alone, to e4m3: GROUPS_FIRST, the first version with scales in f32; GROUPS_PLAIN and
 *             GROUPS_PACKED, the second version with scales of either kind
 */
#include "quant.h"
#include "quant_silu.h"
#include "launch.cuh"
#include "quant_group.cuh"
#include "reduce.cuh"

#define THREADS (FUSE ? 128 : 256)

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
    pdl_release();
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
}

#else

#define PIECE  (16 / (int)sizeof(T))
#define PIECES (ELEMENTS / PIECE)
#define BLOCKS (FUSE ? 8 : 8 - ELEMENTS / 8)     /* on a multiprocessor, at least */

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

DEVICE float least_or_nan(float a, float b)
{
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

/* How far the result is from being tiny; the silu of 0 is 0 without error. */
DEVICE float size(float s, float gate) { return gate == 0 ? 1.0f : fabsf(s); }

/* v = round(round(silu(v)) * up) */
DEVICE void fuse(float v[PIECE], const float up[PIECE], uint32_t cut, float tiny)
{
    float    s[PIECE], least = INF;                     /* or NaN, which must not be left out */
    uint32_t nearest = ~0u;
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) {
        s[i]             = fast_silu(v[i]);
        least            = least_or_nan(least, size(s[i], v[i]));
        const uint32_t d = from_middle(s[i], cut);
        nearest          = d < nearest ? d : nearest;
    }
    if (nearest <= 2 * MARGIN || !(least >= tiny)) {
        #pragma unroll
        for (int i = 0; i < PIECE; ++i)
            if (from_middle(s[i], cut) <= 2 * MARGIN || !(size(s[i], v[i]) >= tiny)) s[i] = quant_silu(v[i]);
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

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void quant_groups(const __grid_constant__ quant_groups_args args)
{
    quant_groups_args a = args;
    if (FORM != GROUPS_ANY) a.version = FORM == GROUPS_FIRST ? 1 : 2, a.ue8m0 = FORM == GROUPS_PACKED, a.code = SGK_E4M3, a.clamps = 0;
    if (LANES >= 0) a.lanes_log2 = LANES;

    const uint32_t n = blockIdx.x * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2), row = divide(n, a.columns), column = n - row * a.columns.by;
    const uint32_t lane  = threadIdx.x & ((1u << a.lanes_log2) - 1);
    const int      step  = PIECE << a.lanes_log2;
    const int64_t  first = column * a.group + lane * PIECE;
    const T       *x     = (const T *)a.input + row * a.input_stride + first;
    const uint4    zero  = make_uint4(0, 0, 0, 0);

    pdl_wait();
    pdl_release();
    bool    live  = row < a.rows && column < a.groups;
    int64_t place = row * a.s_row;
    if (a.masked_m) {
        const uint32_t batch = divide(row, a.lines), line = row - batch * a.lines.by;
        live  = live && (int)line < a.masked_m[batch];
        place = batch * a.s_batch + line * a.s_row;
    }
    uint4 p[PIECES];
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
#if FUSE
    #pragma unroll
    for (int i = 0; i < ELEMENTS; ++i) amax = fmaxf(amax, fabsf(v[i]));
#else
    amax = largest_size(p, PIECES);
#endif
    const quant_scaling k = quant_group_scaling(group_max(amax, LANES, a), &a);
    uint32_t            codes[ELEMENTS / 4];
    encode(codes, v, ELEMENTS, a, k);
    if (live) {
        uint8_t *q = a.q + row * a.q_stride + first;
        #pragma unroll
        for (int i = 0; i < PIECES; ++i) store_codes(q + i * step, codes + i * PIECE / 4, PIECE);
    }
    store_scales(a, place, column, lane, live, k);
}

#endif
