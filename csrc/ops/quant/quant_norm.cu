/*
 * Root mean square norm of rows, quantised in groups: one block a row, which stays in registers from the sum of squares to the codes, so
 * that each element is read once. Bound by memory.
 *
 *   T      f32, f16 or bf16
 *   ADD    1: of input + residual, which is stored to residual
 *   LANES  threads a block
 *   VECS   16-byte pieces a thread keeps; 2^lanes_log2 neighbours share a group. 0 keeps none, reads the row again in each pass, and
 *          takes any group and alignment: a warp has a group
 */
#include "quant_norm.h"
#include "launch.cuh"
#include "quant_group.cuh"
#include "reduce.cuh"

#define PIECE (16 / (int)sizeof(T))
#define WARPS (LANES / 32)

#if VECS == 0

DEVICE float value(const T *x, const T *residual, int64_t d) { return ADD ? to_f32(x[d]) + to_f32(residual[d]) : to_f32(x[d]); }

extern "C" __global__ __launch_bounds__(LANES) void quant_norm(const __grid_constant__ quant_norm_args n)
{
    __shared__ float         scratch[WARPS];
    const quant_groups_args &a   = n.groups;
    const int64_t            row = blockIdx.x, dim = a.groups * a.group;
    const int                lane = threadIdx.x % 32;
    const T                 *x = (const T *)a.input + row * a.input_stride, *w = (const T *)n.weight;
    T                       *residual = (T *)n.residual + row * n.residual_stride;
    uint8_t                 *q        = a.q + row * a.q_stride;

    pdl_wait();
    float sum = 0;
    for (int64_t d = threadIdx.x; d < dim; d += LANES) {
        const float v = value(x, residual, d);
        sum += v * v;
    }
    const float scale = rsqrtf(block_sum(sum, scratch, WARPS) / (float)dim + n.eps);
    for (int64_t j = threadIdx.x / 32; j < a.groups; j += WARPS) {
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
    pdl_release();
}

#else

/* Weights come with the row while the registers last, so that their latency is hidden in the row's. */
#define EARLY (VECS <= 4)

extern "C" __global__ __launch_bounds__(LANES) void quant_norm(const __grid_constant__ quant_norm_args n)
{
    __shared__ float         scratch[WARPS];
    const quant_groups_args &a      = n.groups;
    const int64_t            row    = blockIdx.x;
    const int                pieces = (int)(a.groups * a.group / PIECE), lanes = 1 << a.lanes_log2;
    const uint4             *x = (const uint4 *)((const T *)a.input + row * a.input_stride), *w = (const uint4 *)n.weight;
    uint4                   *residual = (uint4 *)((T *)n.residual + row * n.residual_stride);
    uint8_t                 *q        = a.q + row * a.q_stride;
    const uint4              zero     = make_uint4(0, 0, 0, 0);

    pdl_wait();
    uint4 p[VECS], r[VECS], weight[VECS];
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {                                /* all loads first: VECS of each in flight */
        const int c = (int)threadIdx.x + i * LANES;
        p[i]        = c < pieces ? x[c] : zero;
        r[i]        = ADD && c < pieces ? residual[c] : zero;
        if (EARLY) weight[i] = c < pieces ? w[c] : zero;
    }
    float v[VECS][PIECE], sum = 0;
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        unpack16(v[i], p[i], (const T *)0);
        if (ADD) {
            float u[PIECE];
            unpack16(u, r[i], (const T *)0);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) v[i][j] += u[j];
        }
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) sum += v[i][j] * v[i][j];
    }
    const float scale = rsqrtf(block_sum(sum, scratch, WARPS) / (float)(a.groups * a.group) + n.eps);

    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        const int  c    = (int)threadIdx.x + i * LANES;
        const bool live = c < pieces;                               /* the same for all threads of a group */
        float      g[PIECE], amax = 0;
        if (!EARLY) weight[i] = live ? w[c] : zero;
        unpack16(g, weight[i], (const T *)0);
        if (ADD && live) residual[c] = pack16(v[i], (const T *)0);
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) v[i][j] = rounded(v[i][j] * scale * g[j]), amax = fmaxf(amax, fabsf(v[i][j]));
        for (int o = lanes >> 1; o; o >>= 1) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, o));
        const quant_scaling k = quant_group_scaling(amax, &a);
        uint32_t            codes[PIECE / 4];
        encode(codes, v[i], PIECE, a, k);
        if (!live) continue;
        store_codes(q + (int64_t)c * PIECE, codes, PIECE);
        if ((c & (lanes - 1)) == 0) store_scale(a, row * a.s_row, c >> a.lanes_log2, k);
    }
    pdl_release();
}

#endif
