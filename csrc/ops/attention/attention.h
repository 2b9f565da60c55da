/* What the attention kernels are given, and how a sequence is found in it. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ATTENTION_H
#define SGK_ATTENTION_H
#include "base/types.h"

#ifdef __CUDACC__
#define ATTENTION_FN static __device__ __forceinline__
#else
#define ATTENTION_FN static inline
#endif

/*
 * Strides are in elements. A row is what one token has of one tensor; a row of q, out or the packed k, v counts from the
 * tensor's begin, with batch stride 0. Index tensors may be null as in sgk_flash_attn_options.
 */
struct attention_args {
    void          *out;
    float         *softmax_lse;                             /* may be null */
    const void    *q;
    void          *k, *v;
    const void    *k_new, *v_new;
    const int32_t *cu_seqlens_q, *cu_seqlens_k, *cu_seqlens_k_new, *seqused_q, *seqused_k;
    const int32_t *page_table, *kv_batch_idx, *leftpad_k;
    int64_t        out_batch_stride, out_row_stride, out_head_stride;
    int64_t        lse_batch_stride, lse_head_stride;
    int64_t        q_batch_stride, q_row_stride, q_head_stride;
    int64_t        k_batch_stride, k_row_stride, k_head_stride;    /* batch: the cache row, or the page */
    int64_t        v_batch_stride, v_row_stride, v_head_stride;
    int64_t        k_new_batch_stride, k_new_row_stride, k_new_head_stride;
    int64_t        v_new_batch_stride, v_new_row_stride, v_new_head_stride;
    int64_t        page_table_stride;

    int32_t   batch, heads, kv_heads, group, dim;             /* group = heads / kv_heads */
    int32_t   max_q;                                          /* the longest sequence of queries */
    int32_t   max_k;                                          /* places a sequence's cache has */
    int32_t   max_new;                                        /* the longest appended piece; 0: nothing is appended */
    int32_t   total_q, total_k, total_new;                    /* rows of packed tensors */
    int32_t   kv_batches, page_size;                          /* cache rows or pages; page_size 0: not paged */
    int32_t   window_left, window_right;                      /* ATTENTION_NO_LIMIT where there is none; causal: right is 0 */
    float     scale, empty_lse;                               /* empty_lse: of a query that sees no key */
    sgk_dtype dtype;

    /* GPU: keys cut into parts whose results a second kernel combines. */
    int32_t row_blocks, splits;                             /* splits 1: no second kernel */
    int32_t split_keys;                                     /* 0: a sequence's keys are cut evenly; else each part has so many */
    float  *partial_out, *partial_lse;                      /* [splits, batch, heads, max_q] times dim; times 1 */
};

#define ATTENTION_NO_LIMIT 0x3fffffff                       /* twice it plus a position still fits 32 bits */

struct attention_sequence {
    int32_t sq, sk;                                         /* queries and keys that take part, appended ones included */
    int32_t q_begin, k_begin;                               /* first row in packed tensors, 0 elsewhere */
    int32_t leftpad;                                        /* place of key 0 */
    int32_t used, fresh, fresh_begin;                       /* places filled before, tokens appended, their first row when packed */
};

ATTENTION_FN int32_t attention_between(int32_t least, int32_t x, int32_t most) { return x < least ? least : x > most ? most
                                                                                                                     : x; }

/* Lengths come from memory that may hold anything: they are cut to what the tensors have. */
ATTENTION_FN struct attention_sequence attention_sequence_of(const struct attention_args *a, int32_t n)
{
    struct attention_sequence s = { a->max_q, 0, 0, 0, 0, a->max_k, 0, 0 };
    if (a->cu_seqlens_q) {
        s.q_begin = attention_between(0, a->cu_seqlens_q[n], a->total_q);
        s.sq      = attention_between(0, attention_between(0, a->cu_seqlens_q[n + 1], a->total_q) - s.q_begin, a->max_q);
    }
    if (a->seqused_q) s.sq = attention_between(0, a->seqused_q[n], s.sq);
    if (a->cu_seqlens_k) {
        s.k_begin = attention_between(0, a->cu_seqlens_k[n], a->total_k);
        s.used    = attention_between(0, attention_between(0, a->cu_seqlens_k[n + 1], a->total_k) - s.k_begin, a->max_k);
    }
    if (a->seqused_k) s.used = attention_between(0, a->seqused_k[n], s.used);
    if (a->max_new) {
        s.fresh = a->max_new;
        if (a->cu_seqlens_k_new) {
            s.fresh_begin = attention_between(0, a->cu_seqlens_k_new[n], a->total_new);
            s.fresh       = attention_between(0, attention_between(0, a->cu_seqlens_k_new[n + 1], a->total_new) - s.fresh_begin, a->max_new);
        }
        s.fresh = attention_between(0, s.fresh, a->max_k - s.used);
    }
    if (a->leftpad_k) s.leftpad = attention_between(0, a->leftpad_k[n], s.used + s.fresh);
    s.sk = s.used + s.fresh - s.leftpad;
    return s;
}

/* Where place `slot` of sequence n's cache lies; batch -1: nowhere. Offsets are batch * batch_stride + row * row_stride.
 * In two steps, so that a kernel can do other work while the page is on its way. */
struct attention_place { int32_t batch, row; };

ATTENTION_FN int32_t attention_page_of(const struct attention_args *a, int32_t n, int32_t slot)
{
    if (a->page_size) return a->page_table[n * a->page_table_stride + slot / a->page_size];
    if (a->cu_seqlens_k) return 0;
    return a->kv_batch_idx ? a->kv_batch_idx[n] : n;
}

ATTENTION_FN struct attention_place attention_place_in(const struct attention_args *a, const struct attention_sequence *s, int32_t page, int32_t slot)
{
    const struct attention_place p = { page < 0 || page >= a->kv_batches ? -1 : page, a->page_size ? slot % a->page_size : s->k_begin + slot };
    return p;
}

ATTENTION_FN struct attention_place attention_place_of(const struct attention_args *a, const struct attention_sequence *s, int32_t n, int32_t slot)
{
    return attention_place_in(a, s, attention_page_of(a, n, slot), slot);
}

/* The keys that query i sees: [begin, end), empty where end <= begin. */
struct attention_keys { int32_t begin, end; };

ATTENTION_FN struct attention_keys attention_keys_of(const struct attention_args *a, const struct attention_sequence *s, int32_t i)
{
    const int32_t               c    = i + s->sk - s->sq;
    const struct attention_keys keys = { attention_between(0, c - a->window_left, s->sk), attention_between(0, c + a->window_right + 1, s->sk) };
    return keys;
}

/* The keys of part `split` for queries first to last: of the keys that any of them sees. */
ATTENTION_FN struct attention_keys attention_part_of(const struct attention_args *a, const struct attention_sequence *s, int32_t first, int32_t last, int32_t split)
{
    struct attention_keys keys = { attention_keys_of(a, s, first).begin, attention_keys_of(a, s, last).end };
    if (a->splits > 1 && keys.end > keys.begin) {
        int32_t each = a->split_keys;
        if (!each) {
            each = ((keys.end - keys.begin + a->splits - 1) / a->splits + 63) / 64 * 64;
            if (each < 128) each = 128;
        }
        const int64_t begin = keys.begin + (int64_t)split * each;
        keys.begin          = begin < keys.end ? (int32_t)begin : keys.end;
        if (keys.end - keys.begin > each) keys.end = keys.begin + each;
    }
    return keys;
}

#endif
