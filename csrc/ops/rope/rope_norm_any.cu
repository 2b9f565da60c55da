/*
 * RMSNorm and rotary embedding of the heads of q and k, in place, for any alignment and any share of a head that rotates. A warp does a
 * head and keeps it in registers, EACH neighbouring elements a lane; a block does WARPS heads of one token, for which its threads compute
 * cosines and sines once.
 *
 *   DIM  elements of a head: 64, 128 or 256
 */
#include "rope_norm.h"
#include "launch.cuh"
#include "reduce.cuh"
#include "rope_turn.cuh"

#define WARPS   8
#define THREADS (32 * WARPS)
#define EACH    (DIM / 32)

extern "C" __global__ __launch_bounds__(THREADS) void qk_norm_rope_any(const __grid_constant__ qk_norm_rope_args a)
{
    __shared__ float cosines[DIM / 2], sines[DIM / 2];
    const int64_t    token = blockIdx.x, head = (int64_t)blockIdx.y * WARPS + threadIdx.x / 32;
    const int        lane = threadIdx.x % 32, first = lane * EACH, half = a.rot_dim / 2;
    const bool       mine = head < (int64_t)a.q_heads + a.k_heads;
    bf16 *const      at   = (bf16 *)a.qkv + token * a.qkv_stride + head * DIM + first;

    pdl_wait();
    pdl_release();
    bf16 e[EACH], w[EACH];
    #pragma unroll
    for (int j = 0; mine && j < EACH; ++j) e[j] = at[j], w[j] = ((const bf16 *)(head < a.q_heads ? a.q_weight : a.k_weight))[first + j];
    const float position = (float)a.position_ids[token * a.position_stride];
    for (int i = threadIdx.x; i < half; i += THREADS) turn(&cosines[i], &sines[i], &a, (float)i, position);
    __syncthreads();
    if (!mine) return;

    float x[EACH], sum = 0;
    #pragma unroll
    for (int j = 0; j < EACH; ++j) x[j] = to_f32(e[j]), sum += x[j] * x[j];
    const float scale = rsqrtf(warp_sum(sum) / (float)DIM + a.eps);
    #pragma unroll
    for (int j = 0; j < EACH; ++j) x[j] *= scale * to_f32(w[j]);

    /* rot_dim is a multiple of EACH, and half is one for pairs that lie apart: a lane rotates all its elements or none. */
    const bool rotates = first < a.rot_dim;
    if (a.is_neox) {
        const bool low     = first < half;
        const int  partner = (low ? first + half : first - half) / EACH, pair = low ? first : first - half;
        #pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const float y = __shfl_sync(~0u, x[j], rotates ? partner : lane);
            if (rotates) x[j] = x[j] * cosines[pair + j] + (low ? -y : y) * sines[pair + j];
        }
    } else if (rotates) {
        #pragma unroll
        for (int j = 0; j < EACH; j += 2) {
            const float c = cosines[(first + j) / 2], s = sines[(first + j) / 2], u = x[j], v = x[j + 1];
            x[j]     = u * c - v * s;
            x[j + 1] = v * c + u * s;
        }
    }
    #pragma unroll
    for (int j = 0; j < EACH; ++j) from_f32(&at[j], x[j]);
}
