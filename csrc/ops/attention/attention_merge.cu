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
#include "types.cuh"

#define THREADS 256

struct weights {
    float a, b;
    bool  has_a, has_b;
};

/* A side that is not there is not looked at, for it may hold NaN. */
DEVICE float merged(const weights &w, float x, float y)
{
    return (w.has_a ? x * w.a : 0.0f) + (w.has_b ? y * w.b : 0.0f);
}

#if PIECE == 1
typedef T piece_t;
DEVICE piece_t merge_piece(const weights &w, piece_t x, piece_t y)
{
    T out;
    from_f32(&out, merged(w, to_f32(x), to_f32(y)));
    return out;
}
#else
typedef uint4 piece_t;
DEVICE piece_t merge_piece(const weights &w, piece_t p, piece_t q)
{
    float x[PIECE], y[PIECE];
    unpack16(x, p, (const T *)0);
    unpack16(y, q, (const T *)0);
    #pragma unroll
    for (int i = 0; i < PIECE; ++i) x[i] = merged(w, x[i], y[i]);
    return pack16(x, (const T *)0);
}
#endif

DEVICE int64_t place(const merge_values &v, int64_t token, int64_t head) { return token * v.token_stride + head * v.head_stride; }

extern "C" __global__ __launch_bounds__(THREADS) void merge_state(const __grid_constant__ merge_state_args a)
{
    const int     lanes = 1 << a.lanes_log2, lane = threadIdx.x & (lanes - 1);
    const int64_t row = (int64_t)blockIdx.x * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2);
    if (row >= a.rows) return;
    const int64_t        token = a.rows >> 32 ? row / a.heads : (uint32_t)row / (uint32_t)a.heads, head = row - token * a.heads;
    const piece_t *const x      = (const piece_t *)((const T *)a.v_a.data + place(a.v_a, token, head));
    const piece_t *const y      = (const piece_t *)((const T *)a.v_b.data + place(a.v_b, token, head));
    piece_t *const       out    = (piece_t *)((T *)a.v_merged.data + place(a.v_merged, token, head));
    const int64_t        pieces = a.dim / PIECE;

    pdl_wait();
    piece_t p, q;
    if (lane < pieces) p = x[lane], q = y[lane];
    float sa = ((const float *)a.s_a.data)[place(a.s_a, token, head)], sb = ((const float *)a.s_b.data)[place(a.s_b, token, head)];
    if (sa == INF) sa = -INF;
    if (sb == INF) sb = -INF;
    weights w;
    w.has_a = sa != -INF, w.has_b = sb != -INF;
    const bool  empty = !w.has_a && !w.has_b;
    const float most  = empty ? 0.0f : fmaxf(sa, sb);
    const float pa = a.base2 ? exp2f(sa - most) : expf(sa - most), pb = a.base2 ? exp2f(sb - most) : expf(sb - most), sum = pa + pb;
    w.a = __fdividef(pa, sum), w.b = __fdividef(pb, sum);

    if (lane < pieces) out[lane] = merge_piece(w, p, q);
    for (int64_t c = lane + lanes; c < pieces; c += lanes) out[c] = merge_piece(w, x[c], y[c]);
    if (lane == 0)
        ((float *)a.s_merged.data)[place(a.s_merged, token, head)] = empty ? -INF : (a.base2 ? log2f(sum) : logf(sum)) + most;
    pdl_release();
}
