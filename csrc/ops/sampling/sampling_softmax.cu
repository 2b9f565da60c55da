/*
 * Softmax, one block a row. The row is read twice, the second time from the second-level cache: first for its maximum m and the sum of
 * e^((x - m) / t), rescaled whenever m grows (M. Milakov, N. Gimelshein: Online normalizer calculation for softmax, 2018); then to
 * write. At temperature 0 the first pass looks for the first maximum instead. Bound by memory, and by exponentials where rows are few.
 *
 *   T      f32, f16 or bf16
 *   PIECE  elements a load takes: 16 bytes of them; 1 takes any length and alignment
 *   WARPS  warps in a block
 */
#include "sampling.h"
#include "launch.cuh"
#include "reduce.cuh"

#define THREADS      (32 * WARPS)
#define STEPS        4                                      /* loads in flight in a thread */
#define MOST         3.402823466e+38f                       /* the largest f32 */
#define INFINITE     __uint_as_float(0x7f800000)
#define NOT_A_NUMBER __uint_as_float(0x7fffffff)

#if PIECE == 1
typedef T piece_t;
DEVICE void unpack(float *v, piece_t p) { v[0] = to_f32(p); }
DEVICE void write(float *out, const float *v) { out[0] = v[0]; }
#else
typedef uint4 piece_t;
DEVICE void unpack(float *v, piece_t p) { unpack16(v, p, (const T *)0); }
DEVICE void write(float *out, const float *v)
{
    #pragma unroll
    for (int i = 0; i < PIECE; i += 4) *(uint4 *)(out + i) = pack16(v + i, (const f32 *)0);
}
#endif

/* Loads STEPS pieces of x from c on, THREADS apart; those behind the row are left. */
DEVICE void load_pieces(piece_t *p, const piece_t *x, int64_t c, int64_t pieces)
{
    #pragma unroll
    for (int i = 0; i < STEPS; ++i)
        if (c + i * THREADS < pieces) p[i] = x[c + i * THREADS];
}

DEVICE void write_all(float *out, int64_t pieces, float value)
{
    float v[PIECE];
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) v[j] = value;
    for (int64_t c = threadIdx.x; c < pieces; c += THREADS) write(out + c * PIECE, v);
}

/* 1 at the first maximum. */
DEVICE void softmax_cold(float *out, const piece_t *x, int64_t pieces, float *scratch)
{
    __shared__ unsigned long long first;
    if (threadIdx.x == 0) first = ~0ull;

    float   m   = -INFINITE;
    int64_t at  = 0;
    bool    nan = false;
    for (int64_t c = threadIdx.x; c < pieces; c += STEPS * THREADS) {
        piece_t p[STEPS];
        load_pieces(p, x, c, pieces);
        #pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            if (c + i * THREADS >= pieces) continue;
            float v[PIECE];
            unpack(v, p[i]);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) {
                nan |= v[j] != v[j];
                if (v[j] > m) m = v[j], at = (c + i * THREADS) * PIECE + j;
            }
        }
    }
    nan              = __syncthreads_or(nan);                        /* also orders the store to `first` */
    const float most = block_max(m, scratch, WARPS);
    if (m == most && m > -INFINITE) atomicMin(&first, (unsigned long long)at);
    __syncthreads();                                    /* all reads are done: out may be x */
    write_all(out, pieces, nan ? NOT_A_NUMBER : 0);
    __syncthreads();
    if (threadIdx.x == 0 && !nan && first != ~0ull) out[first] = 1;
}

extern "C" __global__ __launch_bounds__(THREADS) void softmax(const __grid_constant__ softmax_args a)
{
    __shared__ float scratch[WARPS], scratch2[WARPS];
    const int64_t    row = blockIdx.x, pieces = a.dim / PIECE;
    const piece_t   *x   = (const piece_t *)((const T *)a.logits + row * a.logits_stride);
    float           *out = a.out + row * a.out_stride;

    pdl_wait();
    const float temperature = a.temperature_arr ? a.temperature_arr[row] : a.temperature;
    if (!(temperature >= 0 && temperature <= MOST)) {
        write_all(out, pieces, NOT_A_NUMBER);
        return;
    }
    if (temperature == 0) {
        softmax_cold(out, x, pieces, scratch);
        return;
    }

    /* Finite, so that -infinity less the maximum is no NaN, and 0 times the factor is 0. */
    const float factor = fminf(1 / temperature, MOST);
    float       m = -MOST, sum = 0;
    for (int64_t c = threadIdx.x; c < pieces; c += STEPS * THREADS) {
        piece_t p[STEPS];
        load_pieces(p, x, c, pieces);
        #pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            if (c + i * THREADS >= pieces) continue;
            float v[PIECE], most = m;
            unpack(v, p[i]);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) most = fmaxf(most, v[j]);       /* passes NaN over; the sum has it */
            sum *= expf((m - most) * factor);
            m = most;
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) sum += expf((v[j] - m) * factor);
        }
    }
    const float most  = block_max(m, scratch, WARPS);
    sum               = block_sum(sum * expf((m - most) * factor), scratch2, WARPS);
    const float scale = sum == 0 ? 0 : 1 / sum;
    __syncthreads();                                    /* all reads of the first pass are done: out may be x */

    for (int64_t c = threadIdx.x; c < pieces; c += STEPS * THREADS) {
        piece_t p[STEPS];
        load_pieces(p, x, c, pieces);
        #pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            if (c + i * THREADS >= pieces) continue;
            float v[PIECE];
            unpack(v, p[i]);
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) v[j] = expf((v[j] - most) * factor) * scale;
            write(out + (c + i * THREADS) * PIECE, v);
        }
    }
    pdl_release();
}
