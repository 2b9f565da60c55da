/*
 * Rows to e4m3, each to the place that loc names; k along y = 0 and v along y = 1. 2^lanes_log2 threads share a row and hold STEPS pieces
 * each at a time. Bound by memory: 2 bytes are read for each that is written.
 *
 *   T      f16 or bf16
 *   PIECE  elements at a time: 8, where rows are in 16-byte pieces; 1 takes any length and alignment
 */
#include "copy.h"
#include "launch.cuh"
#include "order.cuh"
#include "quantise.cuh"

#define THREADS 256
#define STEPS   2

DEVICE float rounded(float x)
{
    T y;
    from_f32(&y, x);
    return to_f32(y);
}

/* Conversion to e4m3 keeps what is too large within the format. */
#if PIECE == 8
typedef uint4 piece;
typedef uint2 code;
DEVICE code encode(piece p, float inv)
{
    float v[8];
    unpack16(v, p, (const T *)0);
    #pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = rounded(v[e] * inv);
    return make_uint2(e4m3x4(v), e4m3x4(v + 4));
}
#else
typedef T       piece;
typedef uint8_t code;
DEVICE code encode(piece p, float inv) { return (code)e4m3x2(rounded(to_f32(p) * inv), 0); }
#endif

DEVICE void load(piece p[STEPS], const piece *x, int64_t first, int lanes, int64_t pieces)
{
    #pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        p[s] = piece();
        if (first + s * lanes < pieces) p[s] = x[first + s * lanes];
        on_its_way(p[s]);
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void downcast_fp8(const __grid_constant__ downcast_args a)
{
    const struct downcast_rows *r     = &a.rows[blockIdx.y];
    const int                   lanes = 1 << a.lanes_log2;
    const int64_t               token = (int64_t)blockIdx.x * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2), pieces = a.dim / PIECE;
    pdl_wait();
    pdl_release();
    if (token < a.tokens) {
        const piece *x     = (const piece *)((const T *)r->x + token * r->stride);
        int64_t      first = threadIdx.x & (lanes - 1);
        piece        p[STEPS];
        load(p, x, first, lanes, pieces);               /* before its place is known */
        const int64_t at = load_index(a.loc, token, a.wide_loc), place = at * a.mult + a.offset;
        const float   inv    = rounded(__fdiv_rn(1.0f, rounded(*r->scale)));
        const bool    inside = at == (int32_t)at && place >= 0 && place < a.places;        /* beyond 32 bits the product could come back into range */
        code         *out    = (code *)((uint8_t *)r->out + place * r->out_stride);
        for (; inside && first < pieces; first += lanes * STEPS, load(p, x, first, lanes, pieces)) {
            #pragma unroll
            for (int s = 0; s < STEPS; ++s)
                if (first + s * lanes < pieces) out[first + s * lanes] = encode(p[s], inv);
        }
    }
}
