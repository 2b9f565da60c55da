/*
 * Root mean square norm of rows, quantised in groups: one block a row, which stays in registers from the sum of squares to the codes, so
 * that each element is read once. Bound by memory.
 *
 *   T      f32, f16 or bf16
 *   ADD    1: of input + residual, which is stored to residual
 *   SPANS  spans of 16 elements a thread keeps, in pieces of 16 bytes that alternate between the 2^lanes_log2 threads of a group; a block
 *          has as many threads as the row then needs. 0 keeps none, reads the row again in each pass, and takes any group and alignment
 *   LANES  lanes_log2, or -1: as the arguments say
 */
#include "quant_norm.h"
#include "launch.cuh"
#include "quant_group.cuh"
#include "reduce.cuh"

#define MOST_THREADS 512
#define SPAN         16
#define PIECE        (16 / (int)sizeof(T))
#define PIECES       (SPAN / PIECE)

#if SPANS == 0

DEVICE float value(const T *x, const T *residual, int64_t d) { return ADD ? to_f32(x[d]) + to_f32(residual[d]) : to_f32(x[d]); }

extern "C" __global__ __launch_bounds__(MOST_THREADS) void quant_norm(const __grid_constant__ quant_norm_args n)
{
    __shared__ float         scratch[MOST_THREADS / 32];
    const quant_groups_args &a   = n.groups;
    const int64_t            row = blockIdx.x, dim = a.groups * a.group;
    const int                lane = threadIdx.x % 32, threads = blockDim.x, warps = threads / 32;
    const T                 *x = (const T *)a.input + row * a.input_stride, *w = (const T *)n.weight;
    T                       *residual = (T *)n.residual + row * n.residual_stride;
    uint8_t                 *q        = a.q + row * a.q_stride;

    pdl_wait();
    pdl_release();
    float sum = 0;
    for (int64_t d = threadIdx.x; d < dim; d += threads) {
        const float v = value(x, residual, d);
        sum += v * v;
    }
    const float scale = rsqrtf(block_sum(sum, scratch, warps) / (float)dim + n.eps);
    for (int64_t j = threadIdx.x / 32; j < a.groups; j += warps) {
        const int64_t first = j * a.group, last = first + a.group;
        float         amax = 0;
        for (int64_t d = first + lane; d < last; d += 32) amax = fmaxf(amax, fabsf(rounded(value(x, residual, d) * scale * to_f32(w[d]))));
        const quant_scaling k = quant_group_scaling(warp_max(amax), &a);
        for (int64_t d = first + lane; d < last; d += 32) {         /* a thread writes only what it alone still reads */
            const float v    = value(x, residual, d);
            float       y[4] = { rounded(v * scale * to_f32(w[d])) };
            uint32_t    code;
            encode(&code, y, 4, a, k);
            q[d] = (uint8_t)code;
            if (ADD) from_f32(&residual[d], v);
        }
        if (lane == 0) store_scale(a, row * a.s_row, j, k);
    }
}

#else

/* Weights come with the row while the registers last, so that their latency is hidden in the row's. */
#define EARLY (SPANS <= 2)

extern "C" __global__ __launch_bounds__(MOST_THREADS) void quant_norm(const __grid_constant__ quant_norm_args n)
{
    __shared__ float  scratch[MOST_THREADS / 32];
    quant_groups_args a = n.groups;
    if (LANES >= 0) a.lanes_log2 = LANES;
    const int     threads = blockDim.x, lane = threadIdx.x & ((1 << a.lanes_log2) - 1), groups = threads >> a.lanes_log2, step = PIECE << a.lanes_log2;
    const int     column = (int)threadIdx.x >> a.lanes_log2;        /* group of the first span; the next is `groups` further */
    const int64_t row = blockIdx.x, first = column * a.group + lane * PIECE, next = groups * a.group;
    const T      *x = (const T *)a.input + row * a.input_stride + first, *w = (const T *)n.weight + first;
    T            *residual = (T *)n.residual + row * n.residual_stride + first;
    const uint4   zero     = make_uint4(0, 0, 0, 0);

    pdl_wait();
    pdl_release();
    uint4 p[SPANS][PIECES], r[SPANS][PIECES], weight[SPANS][PIECES];
    #pragma unroll
    for (int i = 0; i < SPANS; ++i) {                               /* all loads first */
        const bool live = column + i * groups < a.groups;
        #pragma unroll
        for (int c = 0; c < PIECES; ++c) {
            const int64_t at = i * next + c * step;
            p[i][c]          = live ? *(const uint4 *)(x + at) : zero;
            r[i][c]          = ADD && live ? *(const uint4 *)(residual + at) : zero;
            if (EARLY) weight[i][c] = live ? *(const uint4 *)(w + at) : zero;
        }
    }
    float v[SPANS][SPAN], sum = 0;
    #pragma unroll
    for (int i = 0; i < SPANS; ++i) {
        #pragma unroll
        for (int c = 0; c < PIECES; ++c) {
            float *part = v[i] + c * PIECE;
            unpack16(part, p[i][c], (const T *)0);
            if (ADD) {
                float u[PIECE];
                unpack16(u, r[i][c], (const T *)0);
                #pragma unroll
                for (int j = 0; j < PIECE; ++j) part[j] += u[j];
            }
        }
        #pragma unroll
        for (int j = 0; j < SPAN; ++j) sum += v[i][j] * v[i][j];
    }
    const float scale = rsqrtf(block_sum(sum, scratch, threads / 32) / (float)(a.groups * a.group) + n.eps);

    #pragma unroll
    for (int i = 0; i < SPANS; ++i) {
        const int  j    = column + i * groups;
        const bool live = j < a.groups;
        uint4      y[PIECES];                                       /* the norm, rounded */
        #pragma unroll
        for (int c = 0; c < PIECES; ++c) {
            float *part = v[i] + c * PIECE, g[PIECE];
            if (!EARLY) weight[i][c] = live ? *(const uint4 *)(w + i * next + c * step) : zero;
            unpack16(g, weight[i][c], (const T *)0);
            if (ADD && live) *(uint4 *)(residual + i * next + c * step) = pack16(part, (const T *)0);
            #pragma unroll
            for (int e = 0; e < PIECE; ++e) part[e] = part[e] * scale * g[e];
            y[c] = pack16(part, (const T *)0);
            unpack16(part, y[c], (const T *)0);
        }
        const quant_scaling k = quant_group_scaling(group_max(largest_size(y, PIECES), LANES, a), &a);
        uint32_t            codes[SPAN / 4];
        encode(codes, v[i], SPAN, a, k);
        uint8_t *q = a.q + row * a.q_stride + first + i * next;
        #pragma unroll
        for (int c = 0; c < PIECES; ++c)
            if (live) store_codes(q + c * step, codes + c * PIECE / 4, PIECE);
        store_scales(a, row * a.s_row, j, lane, live, k);
    }
}

#endif
