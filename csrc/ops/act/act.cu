/*
 * Gated activations: reads 2 D elements a row and writes D. Bound by memory, so a thread has all its loads in flight before it uses one.
 *
 * A block is 2^lanes_log2 threads wide along a row and takes as many rows as its threads allow:
 *
 *              lanes * STEPS pieces of a row
 *     row 0   | thread 0 1 2 .. | again, STEPS times |   the block of chunk 1 |
 *     row 1   | thread lanes .. |
 *
 *   T       f32, f16 or bf16
 *   PIECE   elements a load takes: 16 bytes of them, where halves of rows are in 16-byte pieces; 1 takes any length and alignment
 *   STEPS   pieces of each half a thread does
 */
#include "act.h"
#include "launch.cuh"
#include "types.cuh"

#define THREADS 256

/* Clamped, so that -infinity gives -0; the comparison is false for NaN, which stays. */
DEVICE float silu(float a)
{
    a = a < -3e38f ? -3e38f : a;
    return __fdividef(a, 1.0f + __expf(-a));
}

#if PIECE == 1
typedef T piece_t;
DEVICE piece_t silu_and_mul_piece(piece_t a, piece_t b)
{
    T y;
    from_f32(&y, silu(to_f32(a)) * to_f32(b));
    return y;
}
#else
typedef uint4 piece_t;
DEVICE piece_t silu_and_mul_piece(piece_t a, piece_t b)
{
    float x[PIECE], y[PIECE];
    unpack16(x, a, (const T *)0);
    unpack16(y, b, (const T *)0);
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) x[i] = silu(x[i]) * y[i];
    return pack16(x, (const T *)0);
}
#endif

extern "C" __global__ __launch_bounds__(THREADS)
void silu_and_mul(const __grid_constant__ silu_and_mul_args a)
{
    const int64_t  pieces = a.dim / PIECE;
    const int      lanes = 1 << a.lanes_log2;
    const uint32_t chunks = (uint32_t)((pieces + lanes * STEPS - 1) / (lanes * STEPS));
    const int64_t  row = (int64_t)(blockIdx.x / chunks) * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2);
    const int64_t  first = (int64_t)(blockIdx.x % chunks) * (lanes * STEPS) + (threadIdx.x & (lanes - 1));
    if (row >= a.rows) return;

    const piece_t *x = (const piece_t *)((const T *)a.input + row * a.input_stride);
    piece_t       *y = (piece_t *)((T *)a.out + row * a.out_stride);

    pdl_wait();
    piece_t p[STEPS], q[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int64_t c = first + i * lanes;
        if (c < pieces) p[i] = x[c], q[i] = x[pieces + c];
    }
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int64_t c = first + i * lanes;
        if (c < pieces) y[c] = silu_and_mul_piece(p[i], q[i]);
    }
    pdl_release();
}
