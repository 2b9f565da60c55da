/*
 * Activations: gated ones read 2 D elements a row and write D, plain ones read and write D. Bound by memory, so a thread has all its
 * loads in flight before it uses one.
 *
 * A block is 2^lanes_log2 threads wide along a row and takes as many rows as its threads allow:
 *
 *              lanes * STEPS pieces of a row
 *     row 0   | thread 0 1 2 .. | again, STEPS times |   the block of chunk 1 |
 *     row 1   | thread lanes .. |
 *
 *   ACT     silu, gelu, gelu_tanh or gelu_quick
 *   GATED   1: the second half of a row multiplies what ACT makes of the first; 0: ACT alone
 *   T       f32, f16 or bf16
 *   PIECE   elements a load takes: 16 bytes of them, where (halves of) rows are in 16-byte pieces; 1 takes any length and alignment
 *   STEPS   pieces (of each half) a thread does
 */
#include "act.h"
#include "launch.cuh"
#include "math.cuh"

#define THREADS 256

/* a / (1 + 2^t). Clamped, so that -infinity gives -0; the comparison is false for NaN, which stays. */
DEVICE float over_one_plus_exp2(float a, float t)
{
    a = a < -3e38f ? -3e38f : a;
    return a * reciprocal_approx(1.0f + exp2_approx(t));
}

DEVICE float silu(float a) { return over_one_plus_exp2(a, -LOG2_E * a); }
DEVICE float gelu_quick(float a) { return over_one_plus_exp2(a, -1.702f * LOG2_E * a); }
DEVICE float gelu_tanh(float a) { return over_one_plus_exp2(a, a * __fmaf_rn(a * a, GELU_TANH_3 * LOG2_E, GELU_TANH_1 * LOG2_E)); }

/* See act.h. A comparison and not a minimum or maximum, so that NaN stays. */
DEVICE float gelu(float a)
{
    const bool  half = sizeof(T) == 2;
    const float x = fabsf(a) > 30.0f ? 30.0f : fabsf(a), t = reciprocal_approx(__fmaf_rn(half ? ERFC_HALF_P : ERFC_P, x, 1.0f));
    float       p = half ? ERFC_HALF_4 : ERFC_8;
    if (!half) {
        p = __fmaf_rn(p, t, ERFC_7);
        p = __fmaf_rn(p, t, ERFC_6);
        p = __fmaf_rn(p, t, ERFC_5);
        p = __fmaf_rn(p, t, ERFC_4);
    }
    p = __fmaf_rn(p, t, half ? ERFC_HALF_3 : ERFC_3);
    p = __fmaf_rn(p, t, half ? ERFC_HALF_2 : ERFC_2);
    p = __fmaf_rn(p, t, half ? ERFC_HALF_1 : ERFC_1);
    p = __fmaf_rn(p, t, half ? ERFC_HALF_0 : ERFC_0);
    return __fmaf_rn(-0.5f * x, p * t * exp2_approx(-0.5f * LOG2_E * x * x), a < 0.0f ? 0.0f : a);
}

#if PIECE == 1
typedef T piece_t;
DEVICE piece_t act_piece(piece_t a, piece_t b)
{
    T y;
    from_f32(&y, GATED ? ACT(to_f32(a)) * to_f32(b) : ACT(to_f32(a)));
    return y;
}
#else
typedef uint4 piece_t;
DEVICE piece_t act_piece(piece_t a, piece_t b)
{
    float x[PIECE], y[PIECE];
    unpack16(x, a, (const T *)0);
    unpack16(y, b, (const T *)0);
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) x[i] = GATED ? ACT(x[i]) * y[i] : ACT(x[i]);
    return pack16(x, (const T *)0);
}
#endif

extern "C" __global__ __launch_bounds__(THREADS) void activation(const __grid_constant__ act_args a)
{
    const int64_t  pieces = a.dim / PIECE;
    const int      lanes  = 1 << a.lanes_log2;
    const uint32_t group = divide(blockIdx.x, a.chunks), chunk = blockIdx.x - group * a.chunks.by;
    const int64_t  row   = (int64_t)group * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2);
    const int64_t  first = (int64_t)chunk * (lanes * STEPS) + (threadIdx.x & (lanes - 1));
    if (row >= a.rows) return;

    const piece_t *x = (const piece_t *)((const T *)a.input + row * a.input_stride);
    piece_t       *y = (piece_t *)((T *)a.out + row * a.out_stride);

    pdl_wait();
    pdl_release();
    if (a.expert_ids && load_index(a.expert_ids, row / a.expert_step, a.wide_ids) == -1) return;
    piece_t p[STEPS], q[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int64_t c = first + i * lanes;
        if (c < pieces) {
            p[i] = x[c];
            q[i] = GATED ? x[pieces + c] : p[i];
        }
    }
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int64_t c = first + i * lanes;
        if (c < pieces) y[c] = act_piece(p[i], q[i]);
    }
}
