/* What the rotary kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ROPE_H
#define SGK_ROPE_H
#include "base/types.h"

/* Heads of one tensor. Token t = (t / inner, t % inner) of positions' two dimensions; with one dimension, inner is their number. */
struct rope_heads {
    void   *data;                                       /* NULL: there is none, and heads is 0 */
    int64_t outer_stride, inner_stride, head_stride;    /* in elements */
    int32_t heads, unused;
};

struct rotary_embedding_args {
    struct rope_heads query, key;
    const void       *positions, *cos_sin_cache;
    int64_t           tokens, inner;
    int64_t           positions_outer_stride, positions_inner_stride, cache_stride;   /* in elements */
    int64_t           max_position;                           /* rows of the cache */
    int32_t           rot_dim;                                /* even; the cache has rot_dim / 2 cosines, then as many sines */
    int32_t           is_neox;                                /* pairs are (i, i + rot_dim / 2), otherwise (2i, 2i + 1) */
    int32_t           wide;                                   /* positions are i64, otherwise i32 */
    sgk_dtype         dtype;
};

#endif
