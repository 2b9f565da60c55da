/*
 * Rotary embedding of q and k where they are: the usual case, with nothing else to do and tokens that are evenly spaced. A thread takes
 * two pieces of 16 bytes that rotate with each other, of HEADS heads, blockDim.y apart. They are asked for before the position is known.
 * Each element is read once and written once. A block is items x heads x tokens. Bound by memory, for few tokens by the chain from
 * position over cosine to store.
 *
 *   T         f32, f16 or bf16
 *   C         of the cosines: T or f32
 *   HEADS     of a thread
 *   THREADS   of a block, at most
 *   RESIDENT  threads that a multiprocessor should hold at once, which bounds their registers
 */
#include "rope.h"
#include "launch.cuh"
#include "order.cuh"
#include "types.cuh"

#define PIECE  (16 / (int)sizeof(T))
#define ANGLES (PIECE * (int)sizeof(C) / 16)            /* loads of cosines, and of sines, for a piece */

#if __CUDA_ARCH__ >= 1200 && HEADS == 2         /* sm_120 needs a few registers more */
#undef RESIDENT
#define RESIDENT 960
#endif

DEVICE void rotate(float *x, float *y, float c, float s)
{
    const float u = *x, v = *y;
    *x = u * c - v * s;
    *y = v * c + u * s;
}

extern "C" __global__ __launch_bounds__(THREADS, RESIDENT / THREADS) void rope_in_place(const __grid_constant__ rope_args a)
{
    const int64_t token = (int64_t)blockIdx.x * blockDim.z + threadIdx.z;
    const int     first = (int)(blockIdx.y * blockDim.y * HEADS + threadIdx.y), pair = (int)threadIdx.x * PIECE;
    if (token >= a.tokens || first >= a.heads) return;

    pdl_wait();
    pdl_release();
    const int64_t position = load_index(a.positions, token * a.positions_inner_stride, a.positions_wide);
    const int     apart = a.is_neox ? a.rot_dim / 2 : PIECE, x_at = a.is_neox ? pair : 2 * pair;
    uint4         x[HEADS], y[HEADS];
    T            *at[HEADS];
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        const int         head = h ? min(first + h * (int)blockDim.y, a.heads - 1) : first;
        const bool        is_q = head < a.q_heads;
        const rope_heads *of   = is_q ? &a.q : &a.k;
        at[h]                  = (T *)of->data + token * of->inner_stride + (is_q ? head : head - a.q_heads) * of->head_stride + x_at;
        x[h] = *(const uint4 *)at[h], y[h] = *(const uint4 *)(at[h] + apart);
    }
    const bool     known = position >= 0 && position < a.max_position;          /* another token is passed over */
    const int64_t  row   = known ? position : 0;
    const C *const c_row = (const C *)a.cosines + row * a.cosine_stride + pair, *const s_row = (const C *)a.sines + row * a.sine_stride + pair;
    uint4 cosines[ANGLES], sines[ANGLES];
    #pragma unroll
    for (int i = 0; i < ANGLES; ++i) cosines[i] = ((const uint4 *)c_row)[i], sines[i] = ((const uint4 *)s_row)[i];
    float c[PIECE], s[PIECE];
    #pragma unroll
    for (int i = 0; i < ANGLES; ++i) unpack16(c + i * 16 / sizeof(C), cosines[i], (const C *)0), unpack16(s + i * 16 / sizeof(C), sines[i], (const C *)0);
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        float u[2 * PIECE];
        unpack16(u, x[h], (const T *)0);
        unpack16(u + PIECE, y[h], (const T *)0);
        if (a.is_neox) {
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) rotate(&u[j], &u[PIECE + j], c[j], s[j]);
        } else {
            #pragma unroll
            for (int j = 0; j < PIECE; ++j) rotate(&u[2 * j], &u[2 * j + 1], c[j], s[j]);
        }
        x[h] = pack16(u, (const T *)0), y[h] = pack16(u + PIECE, (const T *)0);
        on_its_way(x[h]), on_its_way(y[h]);             /* what lies in a branch would take its loads into it */
        if (known && (h == 0 || first + h * (int)blockDim.y < a.heads)) *(uint4 *)at[h] = x[h], *(uint4 *)(at[h] + apart) = y[h];
    }
}
