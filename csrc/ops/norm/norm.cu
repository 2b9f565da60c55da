/*
 * RMSNorm and its fused-add form, one block a row. The row stays in registers between the two passes, so each element is read once
 * and written once: 2 D (fused: 4 D) elements moved a row and a few operations each. Bound by memory.
 *
 *   T      f32, f16 or bf16
 *   WARPS  warps in a block
 *   VECS   16-byte pieces a thread keeps; 0 keeps none, reads the row twice, and takes any length and alignment
 */
#include "norm.h"
#include "launch.cuh"
#include "reduce.cuh"

#define THREADS (32 * WARPS)
#define PIECE   (16 / (int)sizeof(T))                   /* elements in a piece */

#if VECS == 0

extern "C" __global__ __launch_bounds__(THREADS)
void rmsnorm(const __grid_constant__ rmsnorm_args a)
{
    __shared__ float scratch[WARPS];
    const T *x = (const T *)a.input + (int64_t)blockIdx.x * a.input_stride;
    const T *w = (const T *)a.weight;
    T       *y = (T *)a.output + (int64_t)blockIdx.x * a.output_stride;

    pdl_wait();
    float sum = 0;
    for (int64_t d = threadIdx.x; d < a.dim; d += THREADS) {
        const float v = to_f32(x[d]);
        sum += v * v;
    }
    const float scale = rsqrtf(block_sum(sum, scratch, WARPS) / (float)a.dim + a.eps);
    for (int64_t d = threadIdx.x; d < a.dim; d += THREADS) from_f32(&y[d], to_f32(x[d]) * scale * to_f32(w[d]));
    pdl_release();
}

extern "C" __global__ __launch_bounds__(THREADS)
void fused_add_rmsnorm(const __grid_constant__ fused_add_rmsnorm_args a)
{
    __shared__ float scratch[WARPS];
    T       *x = (T *)a.input + (int64_t)blockIdx.x * a.input_stride;
    T       *r = (T *)a.residual + (int64_t)blockIdx.x * a.residual_stride;
    const T *w = (const T *)a.weight;

    pdl_wait();
    float sum = 0;
    for (int64_t d = threadIdx.x; d < a.dim; d += THREADS) {
        const float v = to_f32(x[d]) + to_f32(r[d]);
        sum += v * v;
    }
    const float scale = rsqrtf(block_sum(sum, scratch, WARPS) / (float)a.dim + a.eps);
    for (int64_t d = threadIdx.x; d < a.dim; d += THREADS) {        /* a thread writes only what it alone reads */
        const float v = to_f32(x[d]) + to_f32(r[d]);
        from_f32(&r[d], v);
        from_f32(&x[d], v * scale * to_f32(w[d]));
    }
    pdl_release();
}

#else

extern "C" __global__ __launch_bounds__(THREADS)
void rmsnorm(const __grid_constant__ rmsnorm_args a)
{
    __shared__ float scratch[WARPS];
    const uint4 *x = (const uint4 *)((const T *)a.input + (int64_t)blockIdx.x * a.input_stride);
    const uint4 *w = (const uint4 *)a.weight;
    uint4       *y = (uint4 *)((T *)a.output + (int64_t)blockIdx.x * a.output_stride);
    const int pieces = (int)(a.dim / PIECE);

    pdl_wait();
    uint4 piece[VECS];
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {                                /* all loads first: VECS of them in flight */
        const int c = (int)threadIdx.x + i * THREADS;
        piece[i] = c < pieces ? x[c] : make_uint4(0, 0, 0, 0);
    }
    float sum = 0;
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        float v[PIECE];
        unpack16(v, piece[i], (const T *)0);
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) sum += v[j] * v[j];
    }
    const float scale = rsqrtf(block_sum(sum, scratch, WARPS) / (float)a.dim + a.eps);

    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        const int c = (int)threadIdx.x + i * THREADS;
        if (c < pieces) {
            float v[PIECE], g[PIECE];
            unpack16(v, piece[i], (const T *)0);
            unpack16(g, w[c], (const T *)0);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) v[j] = v[j] * scale * g[j];
            y[c] = pack16(v, (const T *)0);
        }
    }
    pdl_release();
}

/* Keeps the unrounded sum in f32 between the passes. */
extern "C" __global__ __launch_bounds__(THREADS)
void fused_add_rmsnorm(const __grid_constant__ fused_add_rmsnorm_args a)
{
    __shared__ float scratch[WARPS];
    uint4       *x = (uint4 *)((T *)a.input + (int64_t)blockIdx.x * a.input_stride);
    uint4       *r = (uint4 *)((T *)a.residual + (int64_t)blockIdx.x * a.residual_stride);
    const uint4 *w = (const uint4 *)a.weight;
    const int pieces = (int)(a.dim / PIECE);

    pdl_wait();
    uint4 piece[VECS], other[VECS];
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        const int c = (int)threadIdx.x + i * THREADS;
        piece[i] = c < pieces ? x[c] : make_uint4(0, 0, 0, 0);
        other[i] = c < pieces ? r[c] : make_uint4(0, 0, 0, 0);
    }
    float v[VECS][PIECE], sum = 0;
    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        float u[PIECE];
        unpack16(v[i], piece[i], (const T *)0);
        unpack16(u, other[i], (const T *)0);
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) {
            v[i][j] += u[j];
            sum += v[i][j] * v[i][j];
        }
    }
    const float scale = rsqrtf(block_sum(sum, scratch, WARPS) / (float)a.dim + a.eps);

    #pragma unroll
    for (int i = 0; i < VECS; ++i) {
        const int c = (int)threadIdx.x + i * THREADS;
        if (c < pieces) {
            r[c] = pack16(v[i], (const T *)0);
            float g[PIECE];
            unpack16(g, w[c], (const T *)0);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) v[i][j] = v[i][j] * scale * g[j];
            x[c] = pack16(v[i], (const T *)0);
        }
    }
    pdl_release();
}

#endif
