/* What the rotary kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ROPE_H
#define SGK_ROPE_H
#include "base/types.h"

/* Heads of one tensor. Token t = (t / inner, t % inner) of positions' two dimensions; with one dimension, inner is their number. */
struct rope_heads {
    void   *data;                                       /* NULL: there is none */
    int64_t outer_stride, inner_stride, head_stride;    /* in elements */
};

/* q and k are rotated into q_out and k_out; k as rotated, and v, also go to row slots[token] of their buffers. */
struct rope_args {
    struct rope_heads q, k, v, q_out, k_out, k_buffer, v_buffer;          /* q_out may be q, k_out k; a buffer's rows are inner_stride apart */
    const void       *cosines, *sines;                                    /* row 0 of each */
    const void       *positions, *slots;                                  /* positions NULL: token t has row t */
    int64_t           tokens, inner;
    int64_t           cosine_stride, sine_stride;                         /* of a row, in elements, as all strides */
    int64_t           positions_outer_stride, positions_inner_stride, slot_stride;
    int64_t           plane_stride;                                       /* from the positions of time to those of height, and on to those of width */
    int64_t           max_position, max_slot;                             /* rows of cosines, and of the buffers */
    int32_t           q_heads, k_heads, head_size;                        /* v has as many heads as k */
    int32_t           rot_dim;                                            /* even; a row has rot_dim / 2 cosines, or rot_dim where `second` is not 0 */
    int32_t           rest;                                               /* elements behind them that are copied; 0 where they already are in their place */
    int32_t           second;                                             /* from the cosine of the first of a pair to the second's; only with is_neox */
    int32_t           sections;                                           /* a rope_sections; others than NONE have three planes of positions */
    int32_t           section[3];                                         /* pairs of time, height and width */
    int32_t           is_neox;                                            /* pairs are (i, i + rot_dim / 2), otherwise (2i, 2i + 1) */
    int32_t           positions_wide, slots_wide;                         /* i64, otherwise i32 */
    sgk_dtype         dtype, angles;                                      /* of heads; of cosines and sines */
    int32_t           heads, each;                                        /* the kernel's: heads of q, k and v together; items of a head */
};

enum rope_sections { ROPE_NONE,
                     ROPE_IN_ORDER,             /* pairs of time, then of height, then of width */
                     ROPE_INTERLEAVED };        /* pair 3 i + 1 is of height and 3 i + 2 of width, as long as there are, all others of time */

#ifdef __CUDACC__
#define ROPE_INLINE static __device__ __forceinline__
#else
#define ROPE_INLINE static inline
#endif

/* The plane of positions by which pair i rotates. */
ROPE_INLINE int rope_plane(const struct rope_args *a, int64_t i)
{
    if (a->sections == ROPE_IN_ORDER) return (i >= a->section[0]) + (i >= (int64_t)a->section[0] + a->section[1]);
    const int which = (int)(i % 3);
    return which && i <= 3 * (int64_t)a->section[which] ? which : 0;
}

#ifndef __CUDACC__
#include "base/exec.h"
/* The end of every operator here, when its arguments are checked and there is something to do. */
sgk_status rope_run(struct rope_args *a, const char *op, DLDevice device, const sgk_exec *exec);

/* Refuses positions without a row: "positions has 7 for token 3, expected 0 to 6, the rows of cos_sin_cache". */
sgk_status rope_check_positions(const struct rope_args *a, const char *op, const char *name, const char *rows, const void *positions, int planes);

void check_apply_rope(void);
void check_rope_forms(void);
#endif

#endif
