/*
 * Quantises rows, which stay in registers between the maximum and the codes: each element is read once. A block takes a row, or each of
 * its warps takes one: the machine starts a block a nanosecond, too few where rows are short.
 *
 *   T      f32, f16 or bf16
 *   PIECE  elements a load takes: 16 bytes of them; 1 takes any length and alignment and reads the row twice
 *   STEPS  pieces a thread holds: a row has as many threads as it then needs. 0 where PIECE is 1
 *   TEAMS  rows a block: 1, or a warp each
 */
#include "quant.h"
#include "launch.cuh"
#include "quant_size.cuh"
#include "quantise.cuh"

#define MOST_THREADS 512

/* n values, a multiple of 4, to their codes. Neither format needs a clamp: e4m3 has its own, and |x| 127 / amax rounds to at most 127. */
DEVICE void encode(uint32_t *codes, float *v, int n, float by, sgk_dtype code)
{
    #pragma unroll
    for (int i = 0; i < n; ++i) v[i] = __fmul_rn(v[i], by);
    if (code == SGK_E4M3) {
        #pragma unroll
        for (int i = 0; i < n; i += 4) codes[i / 4] = e4m3x4(v + i);
    } else {
        #pragma unroll
        for (int i = 0; i < n; i += 4) codes[i / 4] = u8x4(v + i);
    }
}

/* Of numbers that are not negative, whose bits are in the same order, over the warps of a row. */
DEVICE float row_max(float v, float *scratch, int warps)
{
    uint32_t most = __reduce_max_sync(~0u, __float_as_uint(v));
    if (warps == 1) return __uint_as_float(most);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = __uint_as_float(most);
    __syncthreads();
    most = threadIdx.x % 32 < warps ? __float_as_uint(scratch[threadIdx.x % 32]) : 0;
    return __uint_as_float(__reduce_max_sync(~0u, most));
}

extern "C" __global__ __launch_bounds__(MOST_THREADS) void quant_rows(const __grid_constant__ quant_rows_args a)
{
    __shared__ float scratch[MOST_THREADS / 32];
    const int64_t    row     = TEAMS == 1 ? blockIdx.x : (int64_t)blockIdx.x * TEAMS + threadIdx.x / 32;
    const int        threads = TEAMS == 1 ? blockDim.x : 32, thread = TEAMS == 1 ? threadIdx.x : threadIdx.x % 32;
    const T         *x    = (const T *)a.input + row * a.input_stride;
    uint8_t         *q    = a.q + row * a.q_stride;
    float            amax = 0;

    pdl_wait();
    pdl_release();
    if (TEAMS > 1 && row >= a.rows) return;
#if PIECE == 1
    #pragma unroll 4
    for (int64_t i = thread; i < a.dim; i += threads) amax = fmaxf(amax, fabsf(to_f32(x[i])));
#else
    const int pieces = (int)(a.dim / PIECE);
    uint4     p[STEPS];
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const int c = thread + s * threads;
        p[s]        = c < pieces ? ((const uint4 *)x)[c] : make_uint4(0, 0, 0, 0);
    }
#if STEPS == 2
    amax = largest_size(p, STEPS);
#else                                                   /* where the machine is full, as fast with registers that keep it from being fuller */
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        float v[PIECE];
        unpack16(v, p[s], (const T *)0);
        #pragma unroll
        for (int i = 0; i < PIECE; ++i) amax = fmaxf(amax, fabsf(v[i]));
    }
#endif
#endif
    const quant_scaling scaling = quant_row_scaling(row_max(amax, scratch, threads / 32), a.code);
    if (thread == 0) a.s[row * a.s_stride] = scaling.s;
#if PIECE == 1
    #pragma unroll 4
    for (int64_t i = thread; i < a.dim; i += threads) {
        float    v[4] = { to_f32(x[i]) };
        uint32_t code;
        encode(&code, v, 4, scaling.by, a.code);
        q[i] = (uint8_t)code;
    }
#else
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const int c = thread + s * threads;
        float     v[PIECE];
        unpack16(v, p[s], (const T *)0);
        uint32_t codes[PIECE / 4];
        encode(codes, v, PIECE, scaling.by, a.code);
        if (c < pieces) store_codes(q + (int64_t)c * PIECE, codes, PIECE);
    }
#endif
}
