/*
 * Sums of each token's expert rows: K rows are read and one is written; bound by memory. The order is j = 0, 1, ... in f32.
 *
 * A block is 2^lanes_log2 threads wide along a row and takes as many tokens as its threads allow; a thread makes one piece of output
 * and has AHEAD rows in flight. With a permutation its lanes look up a place and a factor each and hand them round.
 *
 *   T         f32, f16 or bf16
 *   PIECE     elements a load takes: 16 bytes of them, where rows are in 16-byte pieces; 1 takes any length and alignment
 *   SHUFFLED  1: a permutation says where the rows of input lie; 0: they lie in order
 */
#include "launch.cuh"
#include "moe.h"
#include "types.cuh"

#define THREADS MOE_SUM_THREADS
#define AHEAD   8                               /* at most the lanes of a token */

/* For sm_100 the compiler aims at so many blocks on a multiprocessor that it spills, unless it is told a number. */
#if __CUDA_ARCH__ / 100 == 10 && SHUFFLED
#define BOUNDS __launch_bounds__(THREADS, 1)
#else
#define BOUNDS __launch_bounds__(THREADS)
#endif

#if PIECE == 1
typedef T piece_t;
DEVICE piece_t nothing(void) { return piece_t(); }
DEVICE void widen(float *v, piece_t p) { v[0] = to_f32(p); }
DEVICE piece_t narrow(const float *v)
{
    T y;
    from_f32(&y, v[0]);
    return y;
}
#else
typedef uint4 piece_t;
DEVICE piece_t nothing(void) { return make_uint4(0, 0, 0, 0); }
DEVICE void widen(float *v, piece_t p) { unpack16(v, p, (const T *)0); }
DEVICE piece_t narrow(const float *v) { return pack16(v, (const T *)0); }
#endif

extern "C" __global__ BOUNDS void moe_sum(const __grid_constant__ moe_sum_args a)
{
    const int64_t  pieces = a.dim / PIECE;
    const int      lanes  = 1 << a.lanes_log2;
    const uint32_t group = divide(blockIdx.x, a.chunks), chunk = blockIdx.x - group * a.chunks.by;
    const int64_t  token  = (int64_t)group * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2);
    const int64_t  c      = (int64_t)chunk * lanes + (threadIdx.x & (lanes - 1));
    const bool     inside = token < a.tokens && c < pieces;
#if !SHUFFLED
    if (!inside) return;                        /* otherwise the lanes need each other */
#endif

    pdl_wait();
    pdl_release();
    float sum[PIECE];
    #pragma unroll
    for (int e = 0; e < PIECE; ++e) sum[e] = 0;
    for (int64_t j0 = 0; j0 < a.terms; j0 += AHEAD) {
        piece_t p[AHEAD];
#if SHUFFLED
        const int64_t mine   = j0 + threadIdx.x % AHEAD;
        const bool    any    = token < a.tokens && mine < a.terms;
        const int64_t row    = any ? load_index(a.permutation, token * a.terms + mine, a.wide_permutation) : -1;
        const int     source = row >= 0 && row < a.sources ? (int)row : -1;     /* sources are fewer than 2^31 */
        const float   factor = source < 0 ? 0.0f : a.factors ? to_f32(((const T *)a.factors)[token * a.terms + mine])
                                                             : 1.0f;
        #pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int from = __shfl_sync(~0u, source, i, AHEAD);
            p[i]           = nothing();
            if (inside && from >= 0) p[i] = ((const piece_t *)((const T *)a.input + from * a.term_stride))[c];
        }
#else
        const piece_t *from = (const piece_t *)((const T *)a.input + token * a.token_stride + j0 * a.term_stride) + c;
        if (j0 + AHEAD <= a.terms) {
            #pragma unroll
            for (int i = 0; i < AHEAD; ++i) p[i] = *from, from = (const piece_t *)((const T *)from + a.term_stride);
        } else {
            #pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                p[i] = nothing();
                if (j0 + i < a.terms) p[i] = *from, from = (const piece_t *)((const T *)from + a.term_stride);
            }
        }
#endif
        #pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
#if SHUFFLED
            const float f = __shfl_sync(~0u, factor, i, AHEAD);
#else
            const float f = 1;
#endif
            float x[PIECE];
            widen(x, p[i]);
            #pragma unroll
            for (int e = 0; e < PIECE; ++e) sum[e] = __fmaf_rn(f, x[e], sum[e]);
        }
    }
    if (!inside) return;
    #pragma unroll
    for (int e = 0; e < PIECE; ++e) sum[e] *= a.scale;
    ((piece_t *)((T *)a.output + token * a.output_stride))[c] = narrow(sum);
}
