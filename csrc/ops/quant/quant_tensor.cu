/*
 * One scale for a tensor: quant_tensor_amax raises it to the maximum over 448, quant_tensor quantises. The first reads every element once,
 * the second reads and writes it once, from the end, where the cache still holds what the first read last. The maximum is taken
 * over the bits as integers, which order floats that are not negative: it does not depend on the order of the blocks.
 *
 *   T      f32, f16 or bf16
 *   PIECE  elements a load takes: 16 bytes of them, the last block finishing one by one; 1 takes any alignment
 */
#include "quant.h"
#include "launch.cuh"
#include "quantise.cuh"
#include "reduce.cuh"

#define THREADS 256
#define STEPS   4
#define BLOCK   ((int64_t)THREADS * STEPS * PIECE)      /* elements */

#if PIECE == 1
typedef T piece_t;
DEVICE void unpack(float *v, piece_t p) { v[0] = to_f32(p); }
#else
typedef uint4 piece_t;
DEVICE void unpack(float *v, piece_t p) { unpack16(v, p, (const T *)0); }
#endif

/* e4m3 needs no clamp: the conversion has its own. */
DEVICE uint8_t code_of(float v, float by) { return (uint8_t)e4m3x2(__fmul_rn(v, by), 0); }

/* The whole pieces of one block's part; thread c's are c, c + THREADS, ... */
DEVICE int pieces_of(const quant_tensor_args &a, int64_t first)
{
    const int64_t left = (a.count - first) / PIECE;
    return left < THREADS * STEPS ? (int)left : THREADS * STEPS;
}

DEVICE void load_pieces(piece_t p[STEPS], const T *x, int pieces)
{
    #pragma unroll
    for (int s = 0; s < STEPS; ++s)
        if ((int)threadIdx.x + s * THREADS < pieces) p[s] = ((const piece_t *)x)[threadIdx.x + s * THREADS];
}

extern "C" __global__ __launch_bounds__(THREADS) void quant_tensor_amax(const __grid_constant__ quant_tensor_args a)
{
    __shared__ float scratch[THREADS / 32];
    const int64_t    first  = blockIdx.x * BLOCK;
    const T         *x      = (const T *)a.input + first;
    const int        pieces = pieces_of(a, first);
    float            amax   = 0;

    pdl_wait();
    pdl_release();
    piece_t p[STEPS];
    load_pieces(p, x, pieces);
    #pragma unroll
    for (int s = 0; s < STEPS; ++s)
        if ((int)threadIdx.x + s * THREADS < pieces) {
            float v[PIECE];
            unpack(v, p[s]);
            #pragma unroll
            for (int i = 0; i < PIECE; ++i) amax = fmaxf(amax, fabsf(v[i]));
        }
#if PIECE > 1
    if (pieces < THREADS * STEPS && (int)threadIdx.x < (int)((a.count - first) % PIECE))
        amax = fmaxf(amax, fabsf(to_f32(x[pieces * PIECE + threadIdx.x])));
#endif
    amax = block_max(amax, scratch, THREADS / 32) / 448.0f;
    if (threadIdx.x == 0) {
        const int bits = __float_as_int(amax);
        if (*(volatile int *)a.s < bits) atomicMax((int *)a.s, bits);   /* most blocks find a larger one there */
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void quant_tensor(const __grid_constant__ quant_tensor_args a)
{
    const int64_t first  = (gridDim.x - 1 - blockIdx.x) * BLOCK;
    const T      *x      = (const T *)a.input + first;
    uint8_t      *q      = a.q + first;
    const int     pieces = pieces_of(a, first);

    pdl_wait();
    pdl_release();
    piece_t p[STEPS];
    load_pieces(p, x, pieces);
    const float by = quant_reciprocal(*a.s);
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        const int c = threadIdx.x + s * THREADS;
        if (c < pieces) {
            float v[PIECE];
            unpack(v, p[s]);
#if PIECE == 1
            q[c] = code_of(v[0], by);
#else
            uint32_t codes[PIECE / 4];
            #pragma unroll
            for (int i = 0; i < PIECE; ++i) v[i] = __fmul_rn(v[i], by);
            #pragma unroll
            for (int i = 0; i < PIECE; i += 4) codes[i / 4] = e4m3x4(v + i);
            store_codes(q + c * PIECE, codes, PIECE);
#endif
        }
    }
#if PIECE > 1
    if (pieces < THREADS * STEPS && (int)threadIdx.x < (int)((a.count - first) % PIECE)) {
        const int i = pieces * PIECE + threadIdx.x;
        q[i]        = code_of(to_f32(x[i]), by);
    }
#endif
}
