/*
 * RMSNorm and rotary embedding of the heads of q and k, in place. LANES threads have a head, each two pieces of 16 bytes that rotate with
 * each other. While its pieces are on their way a thread computes the cosines and sines that it needs: that costs less than to wait for
 * those of another. A block is lanes x heads x tokens. Each element is read once and written once. Bound by memory.
 *
 *   DIM  elements of a head: 64, 128 or 256; with is_neox a.rot_dim is a multiple of 16
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

extern "C" __global__ __launch_bounds__(128) void qk_norm_rope(const __grid_constant__ qk_norm_rope_args a)
{
    const int64_t token = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    const int     head = (int)(blockIdx.y * blockDim.y + threadIdx.y), lane = (int)threadIdx.x;
    if (token >= a.tokens || head >= a.q_heads + a.k_heads) return;

    /* Pieces that do not rotate, and those whose pairs are neighbours, are taken in order. */
    const int   half = a.rot_dim / 2, turns = half / 8;
    const bool  apart = a.is_neox && lane < turns;
    const int   x_at = 8 * (apart ? lane : 2 * lane), y_at = 8 * (apart ? lane + turns : 2 * lane + 1);
    bf16 *const at = (bf16 *)a.qkv + token * a.qkv_stride + (int64_t)head * DIM;

    pdl_wait();
    uint4 *const x = (uint4 *)(at + x_at), *const y = (uint4 *)(at + y_at);
    const bf16 *const weight = (const bf16 *)(head < a.q_heads ? a.q_weight : a.k_weight);
    const uint4       px = *x, py = *y, wx = *(const uint4 *)(weight + x_at), wy = *(const uint4 *)(weight + y_at);
    const float       position = (float)a.position_ids[token * a.position_stride];
    float             c[8], s[8], v[16], w[16], sum = 0;
    #pragma unroll
    for (int j = 0; j < 8; ++j)
        if (8 * lane + j < half) turn(&c[j], &s[j], &a, 8 * lane + j, position);

    unpack16(v, px, (const bf16 *)0);
    unpack16(v + 8, py, (const bf16 *)0);
    unpack16(w, wx, (const bf16 *)0);
    unpack16(w + 8, wy, (const bf16 *)0);
    #pragma unroll
    for (int j = 0; j < 16; ++j) sum += v[j] * v[j];
    const uint32_t members = ((1u << LANES) - 1) << ((threadIdx.x + LANES * (threadIdx.y + blockDim.y * threadIdx.z)) % 32 & ~(LANES - 1));
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
    *x = pack16(v, (const bf16 *)0);
    *y = pack16(v + 8, (const bf16 *)0);
    pdl_release();
}
