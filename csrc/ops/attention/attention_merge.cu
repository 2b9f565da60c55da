/*
 * Merge of two partial attentions: reads two rows and writes one. 2^lanes_log2 threads share a row, and a block of THREADS takes as many
 * rows as fit. Every thread of a row computes its two weights, which costs less than handing them round. Bound by memory: the values
 * are asked for before the weights are known.
 *
 *   T      f32, f16 or bf16
 *   PIECE  elements a load takes: 16 bytes of them, where rows are in 16-byte pieces; 1 takes any length and alignment
 */
#include "attention_merge.h"
#include "launch.cuh"
#include "math.cuh"
#include "order.cuh"

#define THREADS 256
#define LEAST   -200.0f                                 /* its exponential, of 2 or of e, is nothing beside 1 */

/* Sums that are empty, or infinite, count for nothing, and their values, which may be NaN, as zeros. */
struct weights {
    float a, b;
    bool  has_a, has_b;
};

#if PIECE == 1
typedef T piece_t;
DEVICE piece_t nothing(void) { return piece_t(); }
DEVICE piece_t merged(const weights &w, piece_t p, piece_t q)
{
    T out;
    from_f32(&out, fmaf(w.has_a ? to_f32(p) : 0.0f, w.a, (w.has_b ? to_f32(q) : 0.0f) * w.b));
    return out;
}
#else
typedef uint4 piece_t;
DEVICE piece_t nothing(void) { return make_uint4(0, 0, 0, 0); }
DEVICE uint4 only(bool there, uint4 p) { return make_uint4(there ? p.x : 0, there ? p.y : 0, there ? p.z : 0, there ? p.w : 0); }
DEVICE piece_t merged(const weights &w, piece_t p, piece_t q)
{
    float x[PIECE], y[PIECE];
    unpack16(x, only(w.has_a, p), (const T *)0);
    unpack16(y, only(w.has_b, q), (const T *)0);
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) x[i] = fmaf(x[i], w.a, y[i] * w.b);
    return pack16(x, (const T *)0);
}
#endif

/* Where a row begins, in elements. */
struct places {
    int64_t v_merged, v_a, v_b, s_merged, s_a, s_b;
};

DEVICE int64_t place(const merge_values &v, int64_t token, int64_t head) { return token * v.token_stride + head * v.head_stride; }

DEVICE places places_of(const merge_state_args &a, int64_t row)
{
    if (a.heads == 1) {                                 /* the usual case, without a division and with half of the products */
        const places folded = { row * a.v_merged.token_stride, row * a.v_a.token_stride, row * a.v_b.token_stride,
                                row * a.s_merged.token_stride, row * a.s_a.token_stride, row * a.s_b.token_stride };
        return folded;
    }
    const int64_t token = a.rows >> 32 ? row / a.heads : (uint32_t)row / (uint32_t)a.heads, head = row - token * a.heads;
    const places  apart = { place(a.v_merged, token, head), place(a.v_a, token, head), place(a.v_b, token, head),
                            place(a.s_merged, token, head), place(a.s_a, token, head), place(a.s_b, token, head) };
    return apart;
}

extern "C" __global__ __launch_bounds__(THREADS) void merge_state(const __grid_constant__ merge_state_args a)
{
    const int     lanes = 1 << a.lanes_log2, lane = threadIdx.x & (lanes - 1);
    const int64_t row = (int64_t)blockIdx.x * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2);
    if (row >= a.rows) return;
    const places         at     = places_of(a, row);
    const piece_t *const x      = (const piece_t *)((const T *)a.v_a.data + at.v_a);
    const piece_t *const y      = (const piece_t *)((const T *)a.v_b.data + at.v_b);
    piece_t *const       out    = (piece_t *)((T *)a.v_merged.data + at.v_merged);
    const int64_t        pieces = a.dim / PIECE;

    pdl_wait();
    pdl_release();
    float   sa = ((const float *)a.s_a.data)[at.s_a], sb = ((const float *)a.s_b.data)[at.s_b];
    piece_t p = nothing(), q = nothing();
    if (lane < pieces) p = x[lane], q = y[lane];
    if (sa == INF) sa = -INF;
    if (sb == INF) sb = -INF;
    weights w;
    w.has_a = sa != -INF, w.has_b = sb != -INF;

    /* The larger sum's exponential is 1. The smaller's is 0 where a side is not there, or far from the other; NaN stays. */
    const float most     = fmaxf(sa, sb);
    float       less     = (sa == most ? sb : sa) - most;
    less                 = less < LEAST || !w.has_a || !w.has_b ? LEAST : less;
    const float exponent = less * a.to_log2, rest = fmaf(less, a.to_log2_low, fmaf(less, a.to_log2, -exponent));
    const float e = exp2_approx(exponent) * fmaf(rest, 0.69314718f, 1.0f), larger = reciprocal_approx(1.0f + e), smaller = e * larger;
    w.a = sa == most ? larger : smaller, w.b = sa == most ? smaller : larger;
    const float sum = fmaf(log2_approx(1.0f + e), a.from_log2, most);

    piece_t first = merged(w, p, q);
    on_its_way(first);                                  /* also in threads that have none: their branch would keep the loads for itself */
    if (lane < pieces) out[lane] = first;
    for (int64_t c = lane + lanes; c < pieces; c += lanes) out[c] = merged(w, x[c], y[c]);
    if (lane == 0) ((float *)a.s_merged.data)[at.s_merged] = sum;
}
