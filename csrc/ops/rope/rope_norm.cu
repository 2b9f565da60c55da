/*
 * RMSNorm and rotary embedding of the heads of q and k, in place. LANES threads have a head, each two pieces of 16 bytes that rotate with
 * each other, and do the same of HEADS neighbouring heads of one token, so that they share the cosines and sines, which each thread
 * computes while its pieces are on their way. A block is lanes x groups of heads x tokens. Each element is read once and written once.
 * Bound by memory.
 *
 *   DIM    elements of a head: 64, 128 or 256; with is_neox a.rot_dim is a multiple of 16
 *   HEADS  of a thread
 */
#include "rope_norm.h"
#include "launch.cuh"
#include "rope_turn.cuh"

#define LANES (DIM / 16)

DEVICE void rotate(float *x, float *y, float c, float s)
{
    const float u = *x, v = *y;
    *x = u * c - v * s;
    *y = v * c + u * s;
}

extern "C" __global__ __launch_bounds__(256) void qk_norm_rope(const __grid_constant__ qk_norm_rope_args a)
{
    const int64_t token = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    const int     group = (int)(blockIdx.y * blockDim.y + threadIdx.y), q_groups = (a.q_heads + HEADS - 1) / HEADS;
    const bool    is_q  = group < q_groups;
    const int     n     = is_q ? group * HEADS : a.q_heads + (group - q_groups) * HEADS;
    const int     heads = (is_q ? a.q_heads : a.q_heads + a.k_heads) - n;
    if (token >= a.tokens || heads <= 0) return;

    /* Pieces that do not rotate, and those whose pairs are neighbours, are taken in order. */
    const int   lane = (int)threadIdx.x, half = a.rot_dim / 2, turns = half / 8;
    const bool  apart = a.is_neox && lane < turns;
    const int   x_at = 8 * (apart ? lane : 2 * lane), y_at = 8 * (apart ? lane + turns : 2 * lane + 1);
    bf16 *const from = (bf16 *)a.qkv + token * a.qkv_stride + (int64_t)n * DIM;

    pdl_wait();
    uint4 x[HEADS], y[HEADS];
    #pragma unroll
    for (int h = 0; h < HEADS; ++h)
        if (h < heads) x[h] = *(const uint4 *)(from + h * DIM + x_at), y[h] = *(const uint4 *)(from + h * DIM + y_at);
    const bf16 *const weight = (const bf16 *)(is_q ? a.q_weight : a.k_weight);
    const uint4       wx = *(const uint4 *)(weight + x_at), wy = *(const uint4 *)(weight + y_at);
    const float       position = (float)a.position_ids[token * a.position_stride];
    float             c[8], s[8], w[16];
    #pragma unroll
    for (int j = 0; j < 8; ++j)
        if (8 * lane + j < half) turn(&c[j], &s[j], &a, 8 * lane + j, position);
    unpack16(w, wx, (const bf16 *)0);
    unpack16(w + 8, wy, (const bf16 *)0);

    const uint32_t members = (LANES == 32 ? ~0u : (1u << LANES) - 1) << ((threadIdx.x + LANES * (threadIdx.y + blockDim.y * threadIdx.z)) % 32 & ~(LANES - 1));
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        if (h >= heads) break;
        float v[16], sum = 0;
        unpack16(v, x[h], (const bf16 *)0);
        unpack16(v + 8, y[h], (const bf16 *)0);
        #pragma unroll
        for (int j = 0; j < 16; ++j) sum += v[j] * v[j];
        #pragma unroll
        for (int o = LANES / 2; o; o >>= 1) sum += __shfl_xor_sync(members, sum, o);
        const float scale = rsqrtf(sum / (float)DIM + a.eps);
        #pragma unroll
        for (int j = 0; j < 16; ++j) v[j] *= scale * w[j];
        #pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (8 * lane + j >= half) continue;
            if (apart) rotate(&v[j], &v[8 + j], c[j], s[j]);
            else rotate(&v[2 * j], &v[2 * j + 1], c[j], s[j]);
        }
        *(uint4 *)(from + h * DIM + x_at) = pack16(v, (const bf16 *)0);
        *(uint4 *)(from + h * DIM + y_at) = pack16(v + 8, (const bf16 *)0);
    }
    pdl_release();
}
