/*
 * RMSNorm and rotary embedding of the heads of q and k, in place. A warp does a head and keeps it in registers, EACH neighbouring elements
 * a lane; a block does WARPS heads of one token, for which its threads compute cosines and sines once. Each element is read once and
 * written once. Bound by memory.
 *
 *   DIM      elements of a head: 64, 128 or 256
 *   VECTORS  1: a lane's elements are loaded and stored as one; 0 takes any alignment
 */
#include "rope_norm.h"
#include "launch.cuh"
#include "reduce.cuh"

#define WARPS   8
#define THREADS (32 * WARPS)
#define EACH    (DIM / 32)

struct alignas(2 * EACH) lane_elements { bf16 of[EACH]; };

DEVICE lane_elements load_lane(const bf16 *p)
{
#if VECTORS
    return *(const lane_elements *)p;
#else
    lane_elements e;
    #pragma unroll
    for (int j = 0; j < EACH; ++j) e.of[j] = p[j];
    return e;
#endif
}

/* The angle is brought into one turn with 2 pi in two parts, of which the first has so few bits that its multiples are exact. */
DEVICE void turn(float *c, float *s, float angle)
{
    const float n = rintf(angle * 0.15915494f), reduced = fmaf(-n, 1.9353072e-3f, fmaf(-n, 6.28125f, angle));
    *c = __cosf(reduced);
    *s = __sinf(reduced);
}

extern "C" __global__ __launch_bounds__(THREADS) void qk_norm_rope(const __grid_constant__ qk_norm_rope_args a)
{
    __shared__ float cosines[DIM / 2], sines[DIM / 2];
    const int64_t    token = blockIdx.x, head = (int64_t)blockIdx.y * WARPS + threadIdx.x / 32;
    const int        lane = threadIdx.x % 32, first = lane * EACH, half = a.rot_dim / 2;
    const bool       mine = head < (int64_t)a.q_heads + a.k_heads;
    bf16 *const      at   = (bf16 *)a.qkv + token * a.qkv_stride + head * DIM + first;

    pdl_wait();
    lane_elements e, w;
    if (mine) e = load_lane(at), w = load_lane((const bf16 *)(head < a.q_heads ? a.q_weight : a.k_weight) + first);
    for (int i = threadIdx.x; i < half; i += THREADS) {
        float f = exp2f((float)i * (-2.0f / (float)a.rot_dim) * log2f(a.base));
        if (a.scaled) {
            const float ramp = fminf(fmaxf(((float)i - a.low) / (a.high - a.low), 0.0f), 1.0f);
            f                = f / a.factor * ramp + f * (1.0f - ramp);
        }
        float c, s;
        turn(&c, &s, (float)a.position_ids[token * a.position_stride] * f);
        cosines[i] = c * a.attention_factor, sines[i] = s * a.attention_factor;
    }
    __syncthreads();
    if (!mine) return;

    float x[EACH], sum = 0;
    #pragma unroll
    for (int j = 0; j < EACH; ++j) x[j] = to_f32(e.of[j]), sum += x[j] * x[j];
    const float scale = rsqrtf(warp_sum(sum) / (float)DIM + a.eps);
    #pragma unroll
    for (int j = 0; j < EACH; ++j) x[j] *= scale * to_f32(w.of[j]);

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
    for (int j = 0; j < EACH; ++j) from_f32(&e.of[j], x[j]);
#if VECTORS
    *(lane_elements *)at = e;
#else
    #pragma unroll
    for (int j = 0; j < EACH; ++j) at[j] = e.of[j];
#endif
    pdl_release();
}
