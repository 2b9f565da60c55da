/*
 * Quantises groups of neighbours, each with its own scale. Every element is read once and stays in registers between the maximum and the
 * codes. Bound by memory: a thread has STEPS loads (with FUSE twice as many) in flight.
 *
 * 2^lanes_log2 threads of a warp share a group, one piece each; a block takes STEPS times THREADS / lanes groups, in the order of
 * memory, whatever row they are in. A warp takes part in every exchange, also where its groups are behind the last or masked.
 *
 *   T      f32, f16 or bf16
 *   PIECE  elements a load takes: 16 bytes of them. 1: any group and alignment; a warp reads its group twice
 *   FUSE   1: the input is [gate | up], and silu(gate) * up is quantised
 *   STEPS  groups a thread has a part in; 1 where PIECE is 1
 */
#include "quant.h"
#include "quant_silu.h"
#include "launch.cuh"
#include "quantise.cuh"
#include "reduce.cuh"

#define THREADS 256

typedef struct {
    int64_t  row, batch, line;
    uint32_t column;
    bool     live;
} place_t;

DEVICE place_t place_of(const quant_groups_args &a, int64_t n)
{
    place_t p;
    p.live = n < a.rows * a.groups;
    if (!p.live) n = 0;
    /* The short division where it is enough. */
    p.row    = (a.rows * a.groups) >> 32 ? n / a.groups : (int64_t)((uint32_t)n / (uint32_t)a.groups);
    p.column = (uint32_t)(n - p.row * a.groups);
    p.batch = 0, p.line = p.row;
    if (a.masked_m) {
        p.batch = p.row / a.batch_rows, p.line = p.row - p.batch * a.batch_rows;
        p.live = p.live && p.line < a.masked_m[p.batch];
    }
    return p;
}

DEVICE void store_scale(const quant_groups_args &a, const place_t &p, const quant_scaling &scaling)
{
    const int64_t line = p.batch * a.s_batch + p.line * a.s_row;
    if (!a.ue8m0) {
        ((float *)a.s)[line + p.column * a.s_column] = scaling.s;
        return;
    }
    uint8_t *word      = (uint8_t *)a.s + (line + (p.column >> 2) * a.s_column) * 4;
    word[p.column & 3] = (uint8_t)(scaling.exponent + 127);
    if (p.column == a.groups - 1)
        for (uint32_t k = (p.column & 3) + 1; k < 4; ++k) word[k] = 0;
}

DEVICE float scaled(const quant_groups_args &a, const quant_scaling &scaling, float v)
{
    return clamp_keeping_nan(scaling.divide ? __fdiv_rn(v, scaling.by) : __fmul_rn(v, scaling.by), a.least, a.most);
}

#if FUSE
DEVICE float rounded(float v)
{
    T x;
    from_f32(&x, v);
    return to_f32(x);
}
DEVICE float silu_and_mul(float gate, float up) { return rounded(__fmul_rn(rounded(quant_silu(gate)), up)); }
#endif

#if PIECE == 1

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
    const int lane = threadIdx.x % 32;
    pdl_wait();
    const place_t p = place_of(a, (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32);
    if (p.live) {                                       /* the same for the whole warp */
        const T *x    = (const T *)a.input + p.row * a.input_stride + p.column * a.group;
        uint8_t *q    = a.q + p.row * a.q_stride + p.column * a.group;
        float    amax = 0;
        for (int64_t i = lane; i < a.group; i += 32) amax = fmaxf(amax, fabsf(value(a, x + i)));
        const quant_scaling scaling = quant_group_scaling(warp_max(amax), &a);
        for (int64_t i = lane; i < a.group; i += 32) q[i] = code_of(a.code, scaled(a, scaling, value(a, x + i)));
        if (lane == 0) store_scale(a, p, scaling);
    }
    pdl_release();
}

#else

#define STORE_CODES_(n) store_codes##n
#define STORE_CODES(n)  STORE_CODES_(n)

extern "C" __global__ __launch_bounds__(THREADS) void quant_groups(const __grid_constant__ quant_groups_args a)
{
    const int     lanes = 1 << a.lanes_log2, lane = threadIdx.x & (lanes - 1), groups = THREADS >> a.lanes_log2;
    const int64_t first = (int64_t)blockIdx.x * (STEPS * groups) + (threadIdx.x >> a.lanes_log2);

    pdl_wait();
    place_t p[STEPS];
    uint4   x[STEPS];
#if FUSE
    uint4 up[STEPS];
#endif
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        p[s]          = place_of(a, first + s * groups);
        const T *from = (const T *)a.input + p[s].row * a.input_stride + p[s].column * a.group + lane * PIECE;
        x[s]          = make_uint4(0, 0, 0, 0);
        if (p[s].live) x[s] = *(const uint4 *)from;
#if FUSE
        up[s] = make_uint4(0, 0, 0, 0);
        if (p[s].live) up[s] = *(const uint4 *)(from + a.groups * a.group);
#endif
    }
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        float v[PIECE], amax = 0;
        unpack16(v, x[s], (const T *)0);
#if FUSE
        float w[PIECE];
        unpack16(w, up[s], (const T *)0);
        #pragma unroll
        for (int i = 0; i < PIECE; ++i) v[i] = silu_and_mul(v[i], w[i]);
#endif
        #pragma unroll
        for (int i = 0; i < PIECE; ++i) amax = fmaxf(amax, fabsf(v[i]));
        for (int o = lanes >> 1; o; o >>= 1) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
        const quant_scaling scaling = quant_group_scaling(amax, &a);
        #pragma unroll
        for (int i = 0; i < PIECE; ++i) v[i] = scaled(a, scaling, v[i]);
        if (p[s].live) {
            STORE_CODES(PIECE)(a.q + p[s].row * a.q_stride + p[s].column * a.group + lane * PIECE, a.code, v);
            if (lane == 0) store_scale(a, p[s], scaling);
        }
    }
    pdl_release();
}

#endif
