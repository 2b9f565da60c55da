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
    const void    *q, *q_v;                                 /* q: rotated already, where that is asked for. q_v may be null */
    void          *k, *v;
    const void    *k_new, *v_new;
    const void    *sinks;                                   /* [heads], may be null */
    const float   *q_descale, *k_descale, *v_descale;       /* may be null; always are unless dtype is e4m3 */
    const int32_t *cu_seqlens_q, *cu_seqlens_k, *cu_seqlens_k_new, *seqused_q, *seqused_k;
    const int32_t *page_table, *kv_batch_idx, *leftpad_k;
    int64_t        out_batch_stride, out_row_stride, out_head_stride;
    int64_t        lse_batch_stride, lse_head_stride;
    int64_t        q_batch_stride, q_row_stride, q_head_stride;
    int64_t        q_v_batch_stride, q_v_row_stride, q_v_head_stride;
    int64_t        k_batch_stride, k_row_stride, k_head_stride;    /* batch: the cache row, or the page */
    int64_t        v_batch_stride, v_row_stride, v_head_stride;
    int64_t        k_new_batch_stride, k_new_row_stride, k_new_head_stride;
    int64_t        v_new_batch_stride, v_new_row_stride, v_new_head_stride;
    int64_t        q_descale_batch_stride, q_descale_head_stride;
    int64_t        k_descale_batch_stride, k_descale_head_stride;
    int64_t        v_descale_batch_stride, v_descale_head_stride;
    int64_t        page_table_stride;
    int64_t        k_apart, v_apart;                        /* apart: elements from k to k_new and from v to v_new */

    int32_t   batch, heads, kv_heads, group;                  /* group = heads / kv_heads */
    int32_t   dim, dim_v;                                     /* head sizes: of q and k; of v, out and q_v */
    int32_t   max_q;                                          /* the longest sequence of queries */
    int32_t   max_k;                                          /* places a sequence's cache has */
    int32_t   max_new;                                        /* the longest appended piece; 0: nothing is appended */
    int32_t   total_q, total_k, total_new;                    /* rows of packed tensors */
    int32_t   kv_batches, page_size;                          /* cache rows or pages; page_size 0: not paged */
    int32_t   window_left, window_right;                      /* ATTENTION_NO_LIMIT where there is none; causal: right is 0 */
    int32_t   chunk;                                          /* 0: no chunks */
    int32_t   top_left;                                       /* query i stands at i */
    int32_t   apart;                                          /* the new keys and values follow the cache's, and are read where they lie */
    int32_t   only_up_to, only_above;                         /* sequences of other numbers of queries are another kernel's; only_up_to 0: no limit */
    float     scale, softcap;                                 /* softcap 0: none */
    float     empty_lse;                                      /* of a query that sees no key */
    sgk_dtype dtype, out_dtype, sinks_dtype;                  /* out_dtype: dtype, or bf16 for e4m3 */

    /* GPU: keys cut into parts whose results a second kernel combines, sinks included. */
    int32_t row_blocks, splits;                             /* splits 1: no second kernel */
    int32_t split_keys;                                     /* a part has at least so many; 0: 128 */
    float  *partial_out, *partial_lse;                      /* [splits, batch, heads, max_q] times attention_partial_dim(); times 1 */
};

/* What goes before attention: new keys and values to the cache, rotated; q rotated to a place of its own. */
struct attention_append_args {
    struct attention_args a;                                /* a.q is what attention will read */
    const void           *q;                                /* before rotation */
    const void           *rotary_cos, *rotary_sin;          /* [rotary_rows][rotary_dim / 2], dtype of q; null: nothing is rotated */
    const int32_t        *seqlens_rotary;
    int64_t               q_batch_stride, q_row_stride, q_head_stride;
    int64_t               cos_stride, sin_stride;
    int32_t               rotary_dim, rotary_rows;
    int32_t               interleaved, q_moves;             /* q_moves: query i is at position first + i, otherwise at first */
};

#define ATTENTION_MOST_DIM   576                         /* head sizes of q and k: 512 and 64 of DeepSeek's latent keys */
#define ATTENTION_MOST_DIM_V 512
#define ATTENTION_NO_LIMIT   0x3fffffff                       /* twice it plus a position still fits 32 bits */

/* Floats of a row of partial_out: a multiple of four. */
ATTENTION_FN int32_t attention_partial_dim(const struct attention_args *a) { return (a->dim_v + 3) / 4 * 4; }

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
        if (!a->apart) s.fresh = attention_between(0, s.fresh, a->max_k - s.used);
    }
    if (a->leftpad_k) s.leftpad = attention_between(0, a->leftpad_k[n], s.used + s.fresh);
    s.sk = s.used + s.fresh - s.leftpad;
    return s;
}

/* The same for a kernel that has some of the sequences: others have no queries. */
ATTENTION_FN struct attention_sequence attention_own_sequence(const struct attention_args *a, int32_t n)
{
    struct attention_sequence s = attention_sequence_of(a, n);
    if ((a->only_up_to && s.sq > a->only_up_to) || s.sq <= a->only_above) s.sq = 0;
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

/* The keys and values in place `slot` under key head h: elements from k and from v, k ATTENTION_NOWHERE where there are none. */
#define ATTENTION_NOWHERE (-0x7fffffffffffffffll)
struct attention_row { int64_t k, v; };

ATTENTION_FN struct attention_row attention_row_in(const struct attention_args *a, const struct attention_sequence *s, int32_t n, int32_t h, int32_t page, int32_t slot)
{
    if (a->apart && slot >= s->used) {
        const int64_t              row = s->fresh_begin + slot - s->used;
        const struct attention_row r   = { a->k_apart + n * a->k_new_batch_stride + row * a->k_new_row_stride + h * a->k_new_head_stride,
                                           a->v_apart + n * a->v_new_batch_stride + row * a->v_new_row_stride + h * a->v_new_head_stride };
        return r;
    }
    const struct attention_place p = attention_place_in(a, s, page, slot);
    const struct attention_row   r = { p.batch < 0 ? ATTENTION_NOWHERE : p.batch * a->k_batch_stride + p.row * a->k_row_stride + h * a->k_head_stride,
                                       p.batch < 0 ? ATTENTION_NOWHERE : p.batch * a->v_batch_stride + p.row * a->v_row_stride + h * a->v_head_stride };
    return r;
}

ATTENTION_FN struct attention_row attention_row_of(const struct attention_args *a, const struct attention_sequence *s, int32_t n, int32_t h, int32_t slot)
{
    return attention_row_in(a, s, n, h, a->apart && slot >= s->used ? 0 : attention_page_of(a, n, slot), slot);
}

/* What sums of products are multiplied by to be scores, and what sums of values are. */
ATTENTION_FN float attention_score_scale(const struct attention_args *a, int32_t n, int32_t h)
{
    float scale = a->scale;
    if (a->q_descale) scale *= a->q_descale[n * a->q_descale_batch_stride + h * a->q_descale_head_stride];
    if (a->k_descale) scale *= a->k_descale[n * a->k_descale_batch_stride + h * a->k_descale_head_stride];
    return scale;
}

ATTENTION_FN float attention_value_scale(const struct attention_args *a, int32_t n, int32_t h)
{
    return a->v_descale ? a->v_descale[n * a->v_descale_batch_stride + h * a->v_descale_head_stride] : 1;
}

/* The keys that query i sees: [begin, end), empty where end <= begin. Both ends grow with i. */
struct attention_keys { int32_t begin, end; };

ATTENTION_FN struct attention_keys attention_keys_of(const struct attention_args *a, const struct attention_sequence *s, int32_t i)
{
    const int32_t c     = a->top_left ? i : i + s->sk - s->sq;
    int32_t       begin = c - a->window_left, end = c + a->window_right + 1;
    if (a->chunk) {
        const int32_t first = c < 0 ? -a->chunk : c / a->chunk * a->chunk;      /* chunks before key 0 have no keys: one stands for all */
        begin               = begin > first ? begin : first;
        end                 = end < first + a->chunk ? end : first + a->chunk;
    }
    const struct attention_keys keys = { attention_between(0, begin, s->sk), attention_between(0, end, s->sk) };
    return keys;
}

/* The keys of part `split` for queries first to last: of the keys that any of them sees. */
ATTENTION_FN struct attention_keys attention_part_of(const struct attention_args *a, const struct attention_sequence *s, int32_t first, int32_t last, int32_t split)
{
    struct attention_keys keys = { attention_keys_of(a, s, first).begin, attention_keys_of(a, s, last).end };
    if (a->splits > 1 && keys.end > keys.begin) {
        const int32_t least = a->split_keys ? a->split_keys : 128;
        int32_t       each  = ((keys.end - keys.begin + a->splits - 1) / a->splits + 63) / 64 * 64;
        if (each < least) each = least;
        const int64_t begin = keys.begin + (int64_t)split * each;
        keys.begin          = begin < keys.end ? (int32_t)begin : keys.end;
        if (keys.end - keys.begin > each) keys.end = keys.begin + each;
    }
    return keys;
}

#endif
