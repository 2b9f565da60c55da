/*
 * Between the products of qkv_proj_with_rope. One block a token; each element is read once or twice and written once.
 *
 *   T      f32, f16 or bf16
 *   HEADS  0: norms of the first product's row and the key's rope; 1: the queries' rope
 */
#include "gemm_mla.h"
#include "launch.cuh"
#include "reduce.cuh"

#define THREADS 256

DEVICE void turn(const mla_args *a, T *to, const T *from, int64_t i, int64_t token)
{
    const T *const row = (const T *)a->cos_sin + a->positions[token] * a->cos_sin_stride;
    const float    c = to_f32(row[i]), s = to_f32(row[a->rope / 2 + i]), u = to_f32(from[2 * i]), v = to_f32(from[2 * i + 1]);
    from_f32(&to[2 * i], u * c - v * s);
    from_f32(&to[2 * i + 1], v * c + u * s);
}

extern "C" __global__ __launch_bounds__(THREADS) void mla(const __grid_constant__ mla_args a)
{
    const int64_t t = blockIdx.x;
    pdl_wait();
#if HEADS
    for (int64_t i = threadIdx.x; i < a.heads * (a.rope / 2); i += THREADS) {
        const int64_t h = i / (a.rope / 2);
        turn(&a, (T *)a.q_input + t * a.q_token + h * a.q_head + a.kv_rank, (const T *)a.q + (t * a.heads + h) * (a.nope + a.rope) + a.nope, i % (a.rope / 2), t);
    }
#else
    __shared__ float scratch[2][THREADS / 32];
    T *const row = (T *)a.a + t * (a.q_rank + a.kv_rank + a.rope), *const kv = row + a.q_rank, *const k = (T *)a.k_input + t * a.k_token;
    float q_sum = 0, kv_sum = 0;
    for (int64_t i = threadIdx.x; i < a.q_rank; i += THREADS) q_sum = fmaf(to_f32(row[i]), to_f32(row[i]), q_sum);
    for (int64_t i = threadIdx.x; i < a.kv_rank; i += THREADS) kv_sum = fmaf(to_f32(kv[i]), to_f32(kv[i]), kv_sum);
    const float q_scale  = 1 / sqrtf(block_sum(q_sum, scratch[0], THREADS / 32) / (float)a.q_rank + a.eps);
    const float kv_scale = 1 / sqrtf(block_sum(kv_sum, scratch[1], THREADS / 32) / (float)a.kv_rank + a.eps);
    for (int64_t i = threadIdx.x; i < a.q_rank; i += THREADS) from_f32(&row[i], to_f32(row[i]) * q_scale * to_f32(((const T *)a.q_weight)[i]));
    for (int64_t i = threadIdx.x; i < a.kv_rank; i += THREADS) from_f32(&k[i], to_f32(kv[i]) * kv_scale * to_f32(((const T *)a.kv_weight)[i]));
    for (int64_t i = threadIdx.x; i < a.rope / 2; i += THREADS) turn(&a, k + a.kv_rank, kv + a.kv_rank, i, t);
#endif
    pdl_release();
}
