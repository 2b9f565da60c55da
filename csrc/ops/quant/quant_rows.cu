/*
 * Quantises rows, one block a row, which stays in registers between the maximum and the codes: each element is read once.
 *
 *   T      f32, f16 or bf16
 *   PIECE  elements a load takes: 16 bytes of them; 1 takes any length and alignment and reads the row twice
 *   STEPS  pieces a thread holds: a block has as many threads as the row then needs. 0 where PIECE is 1
 */
#include "quant.h"
#include "launch.cuh"
#include "quantise.cuh"
#include "reduce.cuh"

#define MOST_THREADS (STEPS == 8 ? 512 : 256)

DEVICE float scaled(float v, float by, float most) { return clamp_keeping_nan(__fmul_rn(v, by), -most, most); }

#define STORE_CODES_(n) store_codes##n
#define STORE_CODES(n)  STORE_CODES_(n)

extern "C" __global__ __launch_bounds__(MOST_THREADS) void quant_rows(const __grid_constant__ quant_rows_args a)
{
    __shared__ float scratch[MOST_THREADS / 32];
    const int64_t    row     = blockIdx.x;
    const T         *x       = (const T *)a.input + row * a.input_stride;
    uint8_t         *q       = a.q + row * a.q_stride;
    const float      most    = a.code == SGK_E4M3 ? 448.0f : 127.0f;
    const int        threads = blockDim.x;
    float            amax    = 0;

    pdl_wait();
#if PIECE == 1
    #pragma unroll 4
    for (int64_t i = threadIdx.x; i < a.dim; i += threads) amax = fmaxf(amax, fabsf(to_f32(x[i])));
#else
    const int pieces = (int)(a.dim / PIECE);
    uint4     p[STEPS];
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const int c = threadIdx.x + s * threads;
        p[s]        = c < pieces ? ((const uint4 *)x)[c] : make_uint4(0, 0, 0, 0);
    }
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        float v[PIECE];
        unpack16(v, p[s], (const T *)0);
        #pragma unroll
        for (int i = 0; i < PIECE; ++i) amax = fmaxf(amax, fabsf(v[i]));
    }
#endif
    const quant_scaling scaling = quant_row_scaling(block_max(amax, scratch, threads / 32), a.code);
    if (threadIdx.x == 0) a.s[row * a.s_stride] = scaling.s;
#if PIECE == 1
    #pragma unroll 4
    for (int64_t i = threadIdx.x; i < a.dim; i += threads) q[i] = code_of(a.code, scaled(to_f32(x[i]), scaling.by, most));
#else
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const int c = threadIdx.x + s * threads;
        float     v[PIECE];
        unpack16(v, p[s], (const T *)0);
        #pragma unroll
        for (int i = 0; i < PIECE; ++i) v[i] = scaled(v[i], scaling.by, most);
        if (c < pieces) STORE_CODES(PIECE)(q + (int64_t)c * PIECE, a.code, v);
    }
#endif
    pdl_release();
}
