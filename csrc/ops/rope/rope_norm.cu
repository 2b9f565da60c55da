/*
 * RMSNorm and rotary embedding of the heads of q and k, in place. LANES threads have a head, each two pieces that rotate with each other;
 * a thread takes HEADS heads, for which it computes the cosines and sines that it needs while their pieces are on their way: that costs
 * less than to wait for those of another. A block is lanes x heads x tokens. Each element is read once and written once. Bound by memory.
 *
 *   DIM    elements of a head: 64, 128 or 256
 *   LANES  threads of a head, up to 32. A piece is then DIM / LANES / 2 elements, 2, 4 or 8; with is_neox as many divide a.rot_dim / 2
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
    *x = u * c - v * s;
    *y = v * c + u * s;
}

extern "C" __global__ __launch_bounds__(256) void qk_norm_rope(const __grid_constant__ qk_norm_rope_args a)
{
    const int64_t token = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    const int     first = (int)(blockIdx.y * blockDim.y * HEADS + threadIdx.y), heads = a.q_heads + a.k_heads, lane = (int)threadIdx.x;
    if (token >= a.tokens || first >= heads) return;

    /* Pieces that do not rotate, and those whose pairs are neighbours, are taken in order. */
    const int   half = a.rot_dim / 2, turns = half / EACH;
    const bool  apart = a.is_neox && lane < turns;
    const int   x_at = EACH * (apart ? lane : 2 * lane), y_at = EACH * (apart ? lane + turns : 2 * lane + 1);
    bf16 *const at = (bf16 *)a.qkv + token * a.qkv_stride;

    pdl_wait();
    const float position = (float)a.position_ids[token * a.position_stride], pair = (float)(EACH * lane);
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
        turn(&c[j], &s[j], &a, pair + (float)j, position);
        if (EACH * lane + j >= half) c[j] = 1, s[j] = 0;
    }

    const uint32_t members = ((LANES < 32 ? 1u << LANES % 32 : 0) - 1) << ((threadIdx.x + LANES * (threadIdx.y + blockDim.y * threadIdx.z)) % 32 & ~(LANES - 1));
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        const int head = first + h * blockDim.y;
        if (head >= heads) continue;
        float v[2 * EACH], w[2 * EACH], sum = 0;
        unpack(v, px[h]);
        unpack(v + EACH, py[h]);
        unpack(w, wx[h]);
        unpack(w + EACH, wy[h]);
        #pragma unroll
        for (int j = 0; j < 2 * EACH; ++j) sum += v[j] * v[j];
        #pragma unroll
        for (int o = LANES / 2; o; o >>= 1) sum += __shfl_xor_sync(members, sum, o);
        const float scale = rsqrtf(sum * (1.0f / DIM) + a.eps);
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
    pdl_release();
}
