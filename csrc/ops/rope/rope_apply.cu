/*
 * Rotary embedding of q and k by a cache in f32, from one place to another or in place, with keys and values stored into their buffers on
 * the way. A block takes THREADS items of one token: first the heads of q, then those of k, then those of v. An item is a piece of a head,
 * with its partners where they are elsewhere. Each element is read once. Bound by memory; for few tokens by the chain from position over
 * cosine to store.
 *
 *   T        f32, f16 or bf16
 *   PAIRING  HALVES: elements i and i + R / 2, in 16-byte pieces; NEIGHBOURS: 2 i and 2 i + 1, in 16-byte pieces;
 *            EITHER: one pair or one other element an item, as a.interleave says, any length and alignment
 */
#include "rope_apply.h"
#include "launch.cuh"
#include "types.cuh"

#define THREADS 128

#define EITHER     0
#define HALVES     1
#define NEIGHBOURS 2

#if PAIRING == EITHER
#define PIECE 1
typedef T piece_t;
DEVICE void unpack(float *v, piece_t p) { v[0] = to_f32(p); }
DEVICE piece_t pack(const float *v)
{
    T p;
    from_f32(&p, v[0]);
    return p;
}
#else
#define PIECE (16 / (int)sizeof(T))
typedef uint4 piece_t;
DEVICE void unpack(float *v, piece_t p) { unpack16(v, p, (const T *)0); }
DEVICE piece_t pack(const float *v) { return pack16(v, (const T *)0); }
#endif

DEVICE T *head_of(const apply_rope_heads &h, int64_t row, int64_t head) { return (T *)h.data + row * h.row_stride + head * h.head_stride; }

/* COUNT cosines or sines at p, which are in pieces of 16 bytes but for EITHER. */
#if PAIRING == EITHER
DEVICE void load_row(float *v, const float *p, int) { v[0] = *p; }
#else
DEVICE void load_row(float *v, const float *p, int count)
{
    #pragma unroll
    for (int i = 0; i < count; i += 4) {
        if (count - i >= 4) unpack16(v + i, *(const uint4 *)(p + i), (const f32 *)0);
        else {
            const uint2 u = *(const uint2 *)(p + i);
            v[i] = __uint_as_float(u.x), v[i + 1] = __uint_as_float(u.y);
        }
    }
}
#endif

DEVICE void put(T *to, T *buffer, int64_t i, piece_t p)
{
    if (to) *(piece_t *)(to + i) = p;
    if (buffer) *(piece_t *)(buffer + i) = p;
}

DEVICE void rotate_apart(const T *from, T *to, T *buffer, int64_t x, int64_t y, const float *cosines, const float *sines)
{
    const piece_t px = *(const piece_t *)(from + x), py = *(const piece_t *)(from + y);
    float         u[PIECE], v[PIECE], c[PIECE], s[PIECE];
    load_row(c, cosines, PIECE);
    load_row(s, sines, PIECE);
    unpack(u, px);
    unpack(v, py);
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) {
        const float w = u[j];
        u[j]          = w * c[j] - v[j] * s[j];
        v[j]          = v[j] * c[j] + w * s[j];
    }
    put(to, buffer, x, pack(u));
    put(to, buffer, y, pack(v));
}

#if PAIRING == NEIGHBOURS
/* PIECE elements are PIECE / 2 pairs. */
DEVICE void rotate_piece(const T *from, T *to, T *buffer, int64_t x, const float *cosines, const float *sines)
{
    const piece_t p = *(const piece_t *)(from + x);
    float         u[PIECE], c[PIECE / 2], s[PIECE / 2];
    load_row(c, cosines, PIECE / 2);
    load_row(s, sines, PIECE / 2);
    unpack(u, p);
    #pragma unroll
    for (int j = 0; j < PIECE / 2; ++j) {
        const float w = u[2 * j], z = u[2 * j + 1];
        u[2 * j]     = w * c[j] - z * s[j];
        u[2 * j + 1] = z * c[j] + w * s[j];
    }
    put(to, buffer, x, pack(u));
}
#endif

extern "C" __global__ __launch_bounds__(THREADS) void apply_rope(const __grid_constant__ apply_rope_args a)
{
    const int      half  = a.rot_dim / 2;
    const uint32_t turns = PAIRING == NEIGHBOURS ? a.rot_dim / PIECE : half / PIECE;    /* items of a head that rotate */
    const uint32_t each = turns + a.rest / PIECE, each_v = (uint32_t)(a.head_size / PIECE);
    const uint32_t rotated = (uint32_t)(a.q_heads + a.k_heads) * each;
    const uint32_t item    = blockIdx.y * THREADS + threadIdx.x;
    const int64_t  token   = blockIdx.x;
    const bool     store   = a.k_buffer.data != 0;
    if (item >= rotated + (store ? (uint32_t)a.k_heads * each_v : 0)) return;

    pdl_wait();
    const int64_t position = load_index(a.pos_ids, token * a.pos_stride, a.pos_wide);
    if (position < 0 || position >= a.max_position) return;         /* such a token is passed over */
    const int64_t slot   = store ? load_index(a.kv_cache_loc, token * a.loc_stride, a.loc_wide) : 0;
    const bool    stored = store && slot >= 0 && slot < a.slots;    /* what has no slot is not stored */

    if (item >= rotated) {
        const int64_t head = (item - rotated) / each_v, i = (int64_t)((item - rotated) % each_v) * PIECE;
        if (stored) put(0, head_of(a.v_buffer, slot, head), i, *(const piece_t *)(head_of(a.v, token, head) + i));
        return;
    }
    const int      head = (int)(item / each);
    const uint32_t i    = item % each;
    const bool     is_q = head < a.q_heads;
    const int64_t  n    = is_q ? head : head - a.q_heads;
    const T *const from = head_of(is_q ? a.q : a.k, token, n);
    T *const to = head_of(is_q ? a.q_rope : a.k_rope, token, n), *const buffer = !is_q && stored ? head_of(a.k_buffer, slot, n) : 0;
    const float *row = a.cos_sin_cache + position * a.cache_stride;
    if (i >= turns) {
        const int64_t at = a.rot_dim + (int64_t)(i - turns) * PIECE;
        put(to, buffer, at, *(const piece_t *)(from + at));
    } else {
#if PAIRING == HALVES
        rotate_apart(from, to, buffer, (int64_t)i * PIECE, half + (int64_t)i * PIECE, row + i * PIECE, row + half + i * PIECE);
#elif PAIRING == NEIGHBOURS
        rotate_piece(from, to, buffer, (int64_t)i * PIECE, row + i * (PIECE / 2), row + half + i * (PIECE / 2));
#else
        rotate_apart(from, to, buffer, a.interleave ? 2 * i : i, a.interleave ? 2 * i + 1 : half + i, row + i, row + half + i);
#endif
    }
    pdl_release();
}
