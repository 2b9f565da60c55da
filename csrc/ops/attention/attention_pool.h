/* Sequences whose tokens lie in a pool, found by req_to_token, as attention wants them. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ATTENTION_POOL_H
#define SGK_ATTENTION_POOL_H
#include "base/types.h"

struct attention_pool_args {
    int32_t       *starts;                                  /* [batch + 1]: first row of each sequence's new tokens; only with extend_seq_lens */
    int32_t       *lengths;                                 /* [batch]: keys in the pool */
    int32_t       *table;                                   /* [batch][width]: the slots of those */
    const void    *req_to_token;                            /* [rows][width], i64 where wide, else i32; so are the extend_ tensors */
    const void    *extend_seq_lens, *extend_start_loc;      /* null: one new token a sequence, which is in the pool */
    const int64_t *req_pool_indices, *seq_lens, *encoder_lens;
    int64_t        req_stride;

    /* One new token a sequence: its key and value go to their slot first. */
    const void    *key, *value;                             /* null: they do not; value alone is null where it is part of the key */
    void          *k_cache, *v_cache;
    const int64_t *loc;
    int64_t        key_stride, key_head_stride, value_stride, value_head_stride;                 /* in elements */
    int64_t        k_stride, k_head_stride, v_stride, v_head_stride, slots;

    int32_t batch, rows, width, total;                      /* total: rows of the new tokens */
    int32_t kv_heads, dim, dim_v, size;                     /* size: bytes of an element */
    int32_t wide, cross, unread;                            /* unread: nothing is in the pool */
    int32_t blocks;                                         /* GPU: blocks that share a sequence's row of the table */
};

#ifdef __CUDACC__
#define POOL_FN static __device__ __forceinline__
#else
#define POOL_FN static inline
#endif

POOL_FN int64_t pool_index(const void *p, int64_t i, int32_t wide) { return wide ? ((const int64_t *)p)[i] : ((const int32_t *)p)[i]; }

/* Where sequence b's row of req_to_token begins and how many of its tokens are in the pool; cut to what there is. */
struct pool_sequence { int64_t row, first, keys; };

POOL_FN struct pool_sequence pool_sequence_of(const struct attention_pool_args *a, int32_t b)
{
    struct pool_sequence s = { a->req_pool_indices[b], a->encoder_lens && !a->cross ? a->encoder_lens[b] : 0, 0 };
    if (s.row < 0 || s.row >= a->rows || s.first < 0 || a->unread) return s;
    s.keys = a->cross ? a->encoder_lens[b] : a->seq_lens[b] - (a->extend_seq_lens ? pool_index(a->extend_seq_lens, b, a->wide) : 0);
    if (s.keys > a->width - s.first) s.keys = a->width - s.first;
    if (s.keys < 0) s.keys = 0;
    return s;
}

/* The slot of its token j; a number that no slot has becomes -1. */
POOL_FN int32_t pool_slot(const struct attention_pool_args *a, const struct pool_sequence *s, int64_t j)
{
    const int64_t slot = pool_index(a->req_to_token, s->row * a->req_stride + s->first + j, a->wide);
    return slot < 0 || slot >= a->slots ? -1 : (int32_t)slot;
}

#ifndef __CUDACC__
#include "cuda/kernel.h"
enum { POOL_BUILDS = 2 };
extern struct pool_build {
    sgk_kernel kernel;
    int        size;
} attention_pool_builds[POOL_BUILDS];

void check_attention_pool(void);
#endif

#endif
