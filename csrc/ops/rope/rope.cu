/*
 * Rotary embedding in place. A block takes THREADS items of one token; an item is a piece of a head with its partners. The cosines and
 * sines come from the first-level cache for all heads but the first. Each element is read once and written once. Bound by memory; for
 * few tokens by the chain from position over cosine to store.
 *
 *   T        f32, f16 or bf16
 *   PAIRING  NEOX: elements i and i + R / 2, in 16-byte pieces; NEIGHBOURS: 2 i and 2 i + 1, in 16-byte pieces;
 *            EITHER: one pair an item, as a.is_neox says, any length and alignment
 */
#include "rope.h"
#include "launch.cuh"
#include "types.cuh"

#define THREADS 128
#define PIECE   (16 / (int)sizeof(T))                   /* elements in 16 bytes */

#define EITHER     0
#define NEOX       1
#define NEIGHBOURS 2

DEVICE void rotate(float *x, float *y, float c, float s)
{
    const float u = *x, v = *y;
    *x = u * c - v * s;
    *y = v * c + u * s;
}

#if PAIRING == EITHER

DEVICE int items_of_head(const rotary_embedding_args &a) { return a.rot_dim / 2; }

DEVICE void rotate_item(const rotary_embedding_args &a, T *head, const T *row, int i)
{
    const int half = a.rot_dim / 2;
    T *const at_x = head + (a.is_neox ? i : 2 * i), *const at_y = head + (a.is_neox ? i + half : 2 * i + 1);
    float x = to_f32(*at_x), y = to_f32(*at_y);
    rotate(&x, &y, to_f32(row[i]), to_f32(row[half + i]));
    from_f32(at_x, x);
    from_f32(at_y, y);
}

#elif PAIRING == NEOX

DEVICE int items_of_head(const rotary_embedding_args &a) { return a.rot_dim / 2 / PIECE; }

DEVICE void rotate_item(const rotary_embedding_args &a, T *head, const T *row, int i)
{
    const int    half = a.rot_dim / 2 / PIECE;             /* in pieces */
    uint4 *const at_x = (uint4 *)head + i, *const at_y = at_x + half;
    const uint4 px = *at_x, py = *at_y, pc = ((const uint4 *)row)[i], ps = ((const uint4 *)row)[half + i];
    float       x[PIECE], y[PIECE], c[PIECE], s[PIECE];
    unpack16(x, px, (const T *)0);
    unpack16(y, py, (const T *)0);
    unpack16(c, pc, (const T *)0);
    unpack16(s, ps, (const T *)0);
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) rotate(&x[j], &y[j], c[j], s[j]);
    *at_x = pack16(x, (const T *)0);
    *at_y = pack16(y, (const T *)0);
}

#else

DEVICE int items_of_head(const rotary_embedding_args &a) { return a.rot_dim / PIECE; }

/* PIECE elements are PIECE / 2 pairs: 8 bytes of cosines and 8 of sines. */
DEVICE void rotate_item(const rotary_embedding_args &a, T *head, const T *row, int i)
{
    uint4 *const at = (uint4 *)head + i;
    const uint4  p  = *at;
    const uint2  pc = ((const uint2 *)row)[i], ps = ((const uint2 *)row)[a.rot_dim / PIECE + i];
    float        x[PIECE], c[PIECE], s[PIECE];
    unpack16(x, p, (const T *)0);
    unpack16(c, make_uint4(pc.x, pc.y, 0, 0), (const T *)0);
    unpack16(s, make_uint4(ps.x, ps.y, 0, 0), (const T *)0);
    #pragma unroll
    for (int j = 0; j < PIECE / 2; ++j) rotate(&x[2 * j], &x[2 * j + 1], c[j], s[j]);
    *at = pack16(x, (const T *)0);
}

#endif

extern "C" __global__ __launch_bounds__(THREADS) void rotary_embedding(const __grid_constant__ rotary_embedding_args a)
{
    const int64_t  outer = blockIdx.x / a.inner, inner = blockIdx.x % a.inner;
    const uint32_t each = (uint32_t)items_of_head(a), item = blockIdx.y * THREADS + threadIdx.x;
    const int      head     = (int)(item / each);
    const bool     is_query = head < a.query.heads;
    if (!is_query && head - a.query.heads >= a.key.heads) return;

    pdl_wait();
    const int64_t position = load_index(a.positions, outer * a.positions_outer_stride + inner * a.positions_inner_stride, a.wide);
    if (position < 0 || position >= a.max_position) return;         /* such a token is left as it is */

    const rope_heads &h    = is_query ? a.query : a.key;
    T *const          base = (T *)h.data + outer * h.outer_stride + inner * h.inner_stride + (is_query ? head : head - a.query.heads) * h.head_stride;
    rotate_item(a, base, (const T *)a.cos_sin_cache + position * a.cache_stride, (int)(item % each));
    pdl_release();
}
