/*
 * Rotary embedding from one place to another or in place, with keys and values stored into their buffers on the way. A thread takes one
 * item of a head: two pieces that rotate together, or two that are copied. They are asked for before the position is known. Each element is
 * read once. A block is items x heads x tokens, and needs no division. Cosines and sines come from the caches for all heads but the first.
 * Bound by memory, for which few registers and so many threads do more than several heads a thread; for few tokens by the chain from
 * position over cosine to store.
 *
 *   T      f32, f16 or bf16
 *   C      of the cosines: T or f32
 *   BYTES  that are loaded and stored as one, a piece: 16, 8 (of 2-byte formats), or 0 for one element, any length and alignment
 *   PLAIN  1: the two of a pair rotate by one angle, and all pairs by one position (a.second and a.sections are 0)
 */
#include "rope.h"
#include "launch.cuh"
#include "order.cuh"
#include "types.cuh"

#if BYTES == 16
#define PIECE (16 / (int)sizeof(T))
typedef uint4 piece_t;
DEVICE void unpack(float *v, piece_t p) { unpack16(v, p, (const T *)0); }
DEVICE piece_t pack(const float *v) { return pack16(v, (const T *)0); }
#elif BYTES == 8
#define PIECE (8 / (int)sizeof(T))
typedef uint2 piece_t;
DEVICE void unpack(float *v, piece_t p)
{
    float w[2 * PIECE];
    unpack16(w, make_uint4(p.x, p.y, 0, 0), (const T *)0);
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) v[j] = w[j];
}
DEVICE piece_t pack(const float *v)
{
    float w[2 * PIECE] = { 0 };
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) w[j] = v[j];
    const uint4 p = pack16(w, (const T *)0);
    return make_uint2(p.x, p.y);
}
#else
#define PIECE 1
typedef T piece_t;
DEVICE void unpack(float *v, piece_t p) { v[0] = to_f32(p); }
DEVICE piece_t pack(const float *v)
{
    T p;
    from_f32(&p, v[0]);
    return p;
}
#endif

/* PIECE cosines or sines, as wide as pieces are or twice as wide. */
DEVICE void load_angles(float *v, const C *p)
{
    const int width = 16 / (int)sizeof(C);
    #pragma unroll
    for (int j = 0; j < PIECE / width; ++j) unpack16(v + j * width, ((const uint4 *)p)[j], (const C *)0);
    if (PIECE == 1) v[0] = to_f32(*p);
    else if (PIECE < width) {
        float       w[16 / sizeof(C)];
        const uint2 u = *(const uint2 *)p;
        unpack16(w, make_uint4(u.x, u.y, 0, 0), (const C *)0);
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) v[j] = w[j];
    }
}

DEVICE T *head_of(const rope_heads &h, int64_t outer, int64_t inner, int head)
{
    return (T *)h.data + outer * h.outer_stride + inner * h.inner_stride + head * h.head_stride;
}

DEVICE void rotate(float *x, float *y, float c1, float s1, float c2, float s2)
{
    const float u = *x, v = *y;
    *x = u * c1 - v * s1;
    *y = v * c2 + u * s2;
}

/* False: a position that has no row. `at` is the token's place among positions. */
DEVICE bool load_cosines(const rope_args &a, int64_t position, int64_t at, int pair, float *c1, float *s1, float *c2, float *s2)
{
    const C *const c = (const C *)a.cosines + position * a.cosine_stride + pair, *const s = (const C *)a.sines + position * a.sine_stride + pair;
#if !PLAIN
    if (a.sections) {
        const int64_t height = load_index(a.positions, a.plane_stride + at, a.positions_wide);
        const int64_t width  = load_index(a.positions, 2 * a.plane_stride + at, a.positions_wide);
        if (height < 0 || height >= a.max_position || width < 0 || width >= a.max_position) return false;
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) {
            const int plane = rope_plane(&a, pair + j);
            int64_t   row   = plane == 1 ? height : width;
            if (plane == 0) row = position;
            c1[j] = c2[j] = to_f32(((const C *)a.cosines)[row * a.cosine_stride + pair + j]);
            s1[j] = s2[j] = to_f32(((const C *)a.sines)[row * a.sine_stride + pair + j]);
        }
        return true;
    }
    load_angles(c2, c + a.second);
    load_angles(s2, s + a.second);
#endif
    load_angles(c1, c);
    load_angles(s1, s);
#if PLAIN
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) c2[j] = c1[j], s2[j] = s1[j];
#endif
    return true;
}

extern "C" __global__ __launch_bounds__(128) void rope(const __grid_constant__ rope_args a)
{
    const int64_t token = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    const int     head = (int)(blockIdx.y * blockDim.y + threadIdx.y), i = (int)(blockIdx.z * blockDim.x + threadIdx.x);
    if (token >= a.tokens || head >= a.heads || i >= a.each) return;

    const int  half = a.rot_dim / 2;
    const bool is_q = head < a.q_heads, is_v = head >= a.q_heads + a.k_heads, turns = !is_v && i < half / PIECE;
    const int  n = is_q ? head : head - a.q_heads - (is_v ? a.k_heads : 0);

    /* The two pieces, from the start of a head. Pieces that are copied begin where rotation ends; the second may lie behind the head. */
    const bool apart = turns && a.is_neox;
    const int  x_at = apart ? i * PIECE : 2 * i * PIECE, y_at = apart ? half + i * PIECE : x_at + PIECE;
    if (x_at >= a.head_size) return;
    const bool with_y = turns || y_at < a.head_size;

    const int64_t           outer = a.inner == a.tokens ? 0 : token / a.inner, inner = token - outer * a.inner;
    const rope_heads *const source = is_v ? &a.v : &a.k;
    const T *const          from   = head_of(is_q ? a.q : *source, outer, inner, n);

    pdl_wait();
    pdl_release();
    const int64_t at       = outer * a.positions_outer_stride + inner * a.positions_inner_stride;
    const int64_t position = a.positions ? load_index(a.positions, at, a.positions_wide) : token;
    const int64_t slot     = a.slots && !is_q ? load_index(a.slots, token * a.slot_stride, a.slots_wide) : -1;
    piece_t       x        = *(const piece_t *)(from + x_at), y;
    if (PLAIN) on_its_way(x);
    if (with_y) y = *(const piece_t *)(from + y_at);
    const bool known = position >= 0 && position < a.max_position;  /* another token is passed over */
    if (!PLAIN && !known) return;

    if (turns && known) {
        float u[2 * PIECE], c1[PIECE], s1[PIECE], c2[PIECE], s2[PIECE];
        if (!load_cosines(a, position, at, i * PIECE, c1, s1, c2, s2)) return;
        unpack(u, x);
        unpack(u + PIECE, y);
        if (PIECE == 1 || apart) {
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) rotate(&u[j], &u[PIECE + j], c1[j], s1[j], c2[j], s2[j]);
        } else {
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) rotate(&u[2 * j], &u[2 * j + 1], c1[j], s1[j], c2[j], s2[j]);
        }
        x = pack(u), y = pack(u + PIECE);
    }
    if (!known) return;
    if (!is_v) {
        T *const to             = head_of(is_q ? a.q_out : a.k_out, outer, inner, n);
        *(piece_t *)(to + x_at) = x;
        if (with_y) *(piece_t *)(to + y_at) = y;
    }
    if (slot >= 0 && slot < a.max_slot) {                           /* what has no slot is not stored */
        T *const to             = head_of(is_v ? a.v_buffer : a.k_buffer, 0, slot, n);
        *(piece_t *)(to + x_at) = x;
        if (with_y) *(piece_t *)(to + y_at) = y;
    }
}
