/*
 * RMSNorm and rotary embedding of the heads of q and k, in place. LANES threads have a head, each two pieces that rotate with each other;
 * a thread takes HEADS heads, for which it computes the cosines and sines that it needs while their pieces are on their way: that costs
 * less than to wait for those of another. A block is lanes x heads x tokens. Each element is read once and written once. Bound by memory.
 *
 *   DIM    elements of a head: 64, 128 or 256
 *   LANES  threads of a head, up to 32. A piece is then DIM / LANES / 2 elements: 2, 4 or 8. The bits are the same for all; with is_neox
 *          a.rot_dim is a multiple of 16
 *   HEADS  of a thread, blockDim.y apart
 */
#include "rope_norm.h"
#include "launch.cuh"
#include "rope_turn.cuh"

#define EACH (DIM / LANES / 2)

#if EACH == 8
typedef uint4 piece_t;
DEVICE void unpack(float *v, piece_t p) { unpack16(v, p, (const bf16 *)0); }
DEVICE piece_t pack(const float *v) { return pack16(v, (const bf16 *)0); }
#elif EACH == 4
typedef uint2 piece_t;
DEVICE void unpack(float *v, piece_t p)
{
    v[0] = __uint_as_float(p.x << 16), v[1] = __uint_as_float(p.x & 0xffff0000u);
    v[2] = __uint_as_float(p.y << 16), v[3] = __uint_as_float(p.y & 0xffff0000u);
}
DEVICE piece_t pack(const float *v) { return make_uint2(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3])); }
#else
typedef uint32_t piece_t;
DEVICE void unpack(float *v, piece_t p) { v[0] = __uint_as_float(p << 16), v[1] = __uint_as_float(p & 0xffff0000u); }
DEVICE piece_t pack(const float *v) { return pack_bf16x2(v[0], v[1]); }
#endif

DEVICE void rotate(float *x, float *y, float c, float s)
{
    const float u = *x, v = *y;
    *x = __fmaf_rn(u, c, -__fmul_rn(v, s));
    *y = __fmaf_rn(v, c, __fmul_rn(u, s));
}

/* The sum of squares of a head. Its order is the same for any LANES: fours from both pieces, then a tree from near to far. */
DEVICE float squares(const float *v, uint32_t members)
{
    float q[EACH / 2];
    #pragma unroll
    for (int k = 0; k < EACH / 2; ++k) {
        const float *const x = v + 2 * k, *const y = x + EACH;
        q[k] = __fmaf_rn(y[1], y[1], __fmaf_rn(y[0], y[0], __fmaf_rn(x[1], x[1], __fmul_rn(x[0], x[0]))));
    }
    #pragma unroll
    for (int o = 1; o < EACH / 2; o *= 2) {
        #pragma unroll
        for (int k = 0; k < EACH / 2; k += 2 * o) q[k] += q[k + o];
    }
    float sum = q[0];
    #pragma unroll
    for (int o = 1; o < LANES; o *= 2) sum += __shfl_xor_sync(members, sum, o);
    return sum;
}

extern "C" __global__ __launch_bounds__(256) void qk_norm_rope(const __grid_constant__ qk_norm_rope_args a)
{
    const int64_t token = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    const int     first = (int)(blockIdx.y * blockDim.y * HEADS + threadIdx.y), heads = a.q_heads + a.k_heads, lane = (int)threadIdx.x;
    if (token >= a.tokens || first >= heads) return;

    /* Elements that do not rotate, and those whose pairs are neighbours, are taken in order, 16 by as many threads as hold them. */
    const int   half  = a.rot_dim / 2;
    const bool  apart = a.is_neox && EACH * lane < half;
    const int   x_at = apart ? EACH * lane : 16 * (EACH * lane / 8) + EACH * lane % 8, y_at = x_at + (apart ? half : 8);
    const int   first_pair = apart ? x_at : x_at / 2, second_pair = apart ? x_at + EACH / 2 : y_at / 2;
    bf16 *const at = (bf16 *)a.qkv + token * a.qkv_stride;

    pdl_wait();
    pdl_release();
    const float position = (float)a.position_ids[token * a.position_stride];
    piece_t     px[HEADS], py[HEADS], wx[HEADS], wy[HEADS];
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        const int         head   = first + h * blockDim.y;
        const bf16 *const weight = (const bf16 *)(head < a.q_heads ? a.q_weight : a.k_weight);
        if (head >= heads) continue;
        px[h] = *(const piece_t *)(at + head * DIM + x_at), py[h] = *(const piece_t *)(at + head * DIM + y_at);
        wx[h] = *(const piece_t *)(weight + x_at), wy[h] = *(const piece_t *)(weight + y_at);
    }
    float c[EACH], s[EACH];
    #pragma unroll
    for (int j = 0; j < EACH; ++j) {
        const int pair = j < EACH / 2 ? first_pair + j : second_pair + j - EACH / 2;
        turn(&c[j], &s[j], &a, (float)pair, position);
        if (pair >= half) c[j] = 1, s[j] = 0;
    }

    const uint32_t members = ((LANES < 32 ? 1u << LANES % 32 : 0) - 1) << ((threadIdx.x + LANES * (threadIdx.y + blockDim.y * threadIdx.z)) % 32 & ~(LANES - 1));
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        const int head = first + h * blockDim.y;
        if (head >= heads) continue;
        float v[2 * EACH], w[2 * EACH];
        unpack(v, px[h]);
        unpack(v + EACH, py[h]);
        unpack(w, wx[h]);
        unpack(w + EACH, wy[h]);
        const float scale = rsqrtf(__fmaf_rn(squares(v, members), 1.0f / DIM, a.eps));
        #pragma unroll
        for (int j = 0; j < 2 * EACH; ++j) v[j] *= scale * w[j];
        if (apart) {
            #pragma unroll
            for (int j = 0; j < EACH; ++j) rotate(&v[j], &v[EACH + j], c[j], s[j]);
        } else {
            #pragma unroll
            for (int j = 0; j < EACH; ++j) rotate(&v[2 * j], &v[2 * j + 1], c[j], s[j]);
        }
        *(piece_t *)(at + head * DIM + x_at) = pack(v);
        *(piece_t *)(at + head * DIM + y_at) = pack(v + EACH);
    }
}
