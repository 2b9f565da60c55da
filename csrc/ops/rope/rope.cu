/*
 * Rotary embedding from one place to another or in place, with keys and values stored into their buffers on the way. A thread takes
 * the same item of HEADS neighbouring heads of one token, so that they share its cosines and sines; an item is two pieces that rotate
 * together, or two that are copied. Pieces are asked for before the position is known. Each element is read once. A block is items x
 * groups of heads x tokens, and needs no division. Bound by memory; for few tokens by the chain from position over cosine to store.
 *
 *   T      f32, f16 or bf16
 *   C      of the cosines: T or f32
 *   PIECE  elements that are loaded and stored as one: 16 bytes, or 1 for any length and alignment
 *   HEADS  more than 1: the two of a pair rotate by one angle (a.second is 0)
 */
#include "rope.h"
#include "launch.cuh"
#include "types.cuh"

#if PIECE == 1
typedef T piece_t;
DEVICE void unpack(float *v, piece_t p) { v[0] = to_f32(p); }
DEVICE piece_t pack(const float *v)
{
    T p;
    from_f32(&p, v[0]);
    return p;
}
DEVICE void load_angles(float *v, const C *p) { v[0] = to_f32(*p); }
#else
typedef uint4 piece_t;
DEVICE void unpack(float *v, piece_t p) { unpack16(v, p, (const T *)0); }
DEVICE piece_t pack(const float *v) { return pack16(v, (const T *)0); }
DEVICE void load_angles(float *v, const C *p)
{
    const int width = 16 / (int)sizeof(C);
    #pragma unroll
    for (int i = 0; i < PIECE / width; ++i) unpack16(v + i * width, ((const uint4 *)p)[i], (const C *)0);
}
#endif

DEVICE T *head_of(const rope_heads &h, int64_t outer, int64_t inner, int64_t head)
{
    return (T *)h.data + outer * h.outer_stride + inner * h.inner_stride + head * h.head_stride;
}

DEVICE void rotate(float *x, float *y, float c1, float s1, float c2, float s2)
{
    const float u = *x, v = *y;
    *x = u * c1 - v * s1;
    *y = v * c2 + u * s2;
}

extern "C" __global__ __launch_bounds__(256) void rope(const __grid_constant__ rope_args a)
{
    const int64_t token = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    const int     group = (int)(blockIdx.y * blockDim.y + threadIdx.y), i = (int)(blockIdx.z * blockDim.x + threadIdx.x);
    if (token >= a.tokens || group >= a.groups || i >= a.each) return;

    const int  half = a.rot_dim / 2, k_groups = (a.k_heads + HEADS - 1) / HEADS;
    const bool is_q = group < a.q_groups, is_v = group >= a.q_groups + k_groups, turns = !is_v && i < half / PIECE;
    const int  n = (group - (is_q ? 0 : is_v ? a.q_groups + k_groups : a.q_groups)) * HEADS, heads = (is_q ? a.q_heads : a.k_heads) - n;

    /* The two pieces, from the start of a head. Pieces that are copied begin where rotation ends; the second may lie behind the head. */
    int x_at = 2 * i * PIECE, y_at = x_at + PIECE;
    if (turns && a.is_neox) x_at = i * PIECE, y_at = half + i * PIECE;
    if (x_at >= a.head_size) return;
    const bool with_y = y_at < a.head_size;

    const bool    two_dims = a.inner != a.tokens;
    const int64_t outer = two_dims ? token / a.inner : 0, inner = token - outer * a.inner;
    const rope_heads &source = is_q ? a.q : is_v ? a.v : a.k;
    const T *const    from   = head_of(source, outer, inner, n);

    pdl_wait();
    const int64_t at       = outer * a.positions_outer_stride + inner * a.positions_inner_stride;
    const int64_t position = a.positions ? load_index(a.positions, at, a.positions_wide) : token;
    const int64_t slot     = a.slots ? load_index(a.slots, token * a.slot_stride, a.slots_wide) : -1;
    piece_t       x[HEADS], y[HEADS];
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        if (h < heads) x[h] = *(const piece_t *)(from + h * source.head_stride + x_at);
        if (h < heads && with_y) y[h] = *(const piece_t *)(from + h * source.head_stride + y_at);
    }
    if (position < 0 || position >= a.max_position) return;         /* such a token is passed over */

    if (turns) {
        float    c1[PIECE], s1[PIECE], c2[PIECE], s2[PIECE];
        const C *cosines = (const C *)a.cosines, *sines = (const C *)a.sines;
        if (a.sections) {
            const int64_t height = load_index(a.positions, a.plane_stride + at, a.positions_wide);
            const int64_t width  = load_index(a.positions, 2 * a.plane_stride + at, a.positions_wide);
            if (height < 0 || height >= a.max_position || width < 0 || width >= a.max_position) return;
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) {
                const int     pair = i * PIECE + j, plane = rope_plane(&a, pair);
                const int64_t row  = plane == 0 ? position : plane == 1 ? height : width;
                c1[j] = to_f32(cosines[row * a.cosine_stride + pair]), s1[j] = to_f32(sines[row * a.sine_stride + pair]);
            }
        } else {
            cosines += position * a.cosine_stride + i * PIECE, sines += position * a.sine_stride + i * PIECE;
            load_angles(c1, cosines);
            load_angles(s1, sines);
        }
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) c2[j] = c1[j], s2[j] = s1[j];
        if (HEADS == 1 && a.second) {
            load_angles(c2, cosines + a.second);
            load_angles(s2, sines + a.second);
        }
        #pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float u[2 * PIECE];
            if (h >= heads) break;
            unpack(u, x[h]);
            unpack(u + PIECE, y[h]);
            if (PIECE == 1 || a.is_neox) {
                #pragma unroll
                for (int j = 0; j < PIECE; ++j) rotate(&u[j], &u[PIECE + j], c1[j], s1[j], c2[j], s2[j]);
            } else {
                #pragma unroll
                for (int j = 0; j < PIECE; ++j) rotate(&u[2 * j], &u[2 * j + 1], c1[j], s1[j], c2[j], s2[j]);
            }
            x[h] = pack(u), y[h] = pack(u + PIECE);
        }
    }
    if (!is_v) {
        const rope_heads &goal = is_q ? a.q_out : a.k_out;
        T *const          to   = head_of(goal, outer, inner, n);
        #pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            if (h < heads) *(piece_t *)(to + h * goal.head_stride + x_at) = x[h];
            if (h < heads && with_y) *(piece_t *)(to + h * goal.head_stride + y_at) = y[h];
        }
    }
    if (!is_q && slot >= 0 && slot < a.max_slot) {                  /* what has no slot is not stored */
        const rope_heads &buffer = is_v ? a.v_buffer : a.k_buffer;
        T *const          to     = head_of(buffer, 0, slot, n);
        #pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            if (h < heads) *(piece_t *)(to + h * buffer.head_stride + x_at) = x[h];
            if (h < heads && with_y) *(piece_t *)(to + h * buffer.head_stride + y_at) = y[h];
        }
    }
    pdl_release();
}
