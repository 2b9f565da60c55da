/* Vertical and slash indices to lists of blocks and columns: the same code for the CPU and the GPU. */
#ifndef SGK_ATTENTION_SLASH_H
#define SGK_ATTENTION_SLASH_H
#include "base/types.h"

#ifdef __CUDACC__
#define SLASH_FN static __device__ __forceinline__
#else
#define SLASH_FN static inline
#endif

struct attention_slash_args {
    int32_t       *block_count, *block_offset, *column_count, *column_index;    /* [batch][heads][row_blocks], times nnz_s, times 1, times nnz_v */
    const int32_t *q_seqlens, *kv_seqlens;                                      /* [batch] */
    const int32_t *vertical_indexes, *slash_indexes;                            /* [batch][heads][nnz_v] ascending, [nnz_s] descending */
    const int32_t *vertical_indices_count, *slash_indices_count;                /* [heads]: how many of those count; null: all */
    int64_t        items;                                                       /* batch * heads * row_blocks */
    int32_t        heads, row_blocks, nnz_v, nnz_s;
    int32_t        m, n;                                                        /* queries of a row block, keys of a block */
    int32_t        causal;
};

/* A list under construction. Nothing is written behind its room. */
struct slash_list {
    int32_t *blocks, *columns;
    int32_t  block_count, column_count, block_room, column_room;
};

SLASH_FN void slash_save(struct slash_list *l, int64_t begin, int64_t end, int64_t kv_len, int32_t n)
{
    for (int64_t at = begin; at < (end < kv_len ? end : kv_len) && l->block_count < l->block_room; at += n) l->blocks[l->block_count++] = (int32_t)at;
}

SLASH_FN void slash_column(struct slash_list *l, int64_t column)
{
    if (l->column_count < l->column_room) l->columns[l->column_count++] = (int32_t)column;
}

SLASH_FN int32_t slash_between(int32_t least, int32_t x, int32_t most) { return x < least ? least : x > most ? most
                                                                                                             : x; }

/* Row block `item`: queries that begin behind the sequence's end leave the list as it is. */
SLASH_FN void slash_convert(const struct attention_slash_args *a, int64_t item)
{
    const int64_t r = item % a->row_blocks, bh = item / a->row_blocks, b = bh / a->heads, h = bh % a->heads;
    const int64_t q_len = a->q_seqlens[b], kv_len = a->kv_seqlens[b], start = r * a->m, end = start + a->m, behind = kv_len - q_len;
    if (start >= q_len) return;
    const int32_t    *vertical = a->vertical_indexes + bh * a->nnz_v, *slash = a->slash_indexes + bh * a->nnz_s;
    const int32_t     verticals = a->vertical_indices_count ? slash_between(0, a->vertical_indices_count[h], a->nnz_v) : a->nnz_v;
    const int32_t     slashes   = a->slash_indices_count ? slash_between(0, a->slash_indices_count[h], a->nnz_s) : a->nnz_s;
    const int64_t     edge = end + (a->causal ? behind : kv_len), tail = a->causal ? behind + end : kv_len, none = edge + a->n;
    struct slash_list l = { a->block_offset + item * a->nnz_s, a->column_index + item * a->nnz_v, 0, 0, a->nnz_s, a->nnz_v };

    int32_t v_read = 0, s_read = 0;
    int64_t v = none, s = edge + 1;
    if (verticals) v = vertical[v_read++];
    if (slashes) s = slash[s_read++];
    while (s >= edge && s_read < slashes) s = slash[s_read++];
    int64_t hi = edge - s > a->m ? edge - s : a->m, lo = hi - a->m;         /* the pending range */
    if (s > edge) lo = tail, hi = tail + a->n;
    for (int32_t more = 1;;) {
        if (v < hi && v != none) {                      /* the pending range may reach past the end of the verticals */
            if (v < lo) slash_column(&l, v);
            v = v_read < verticals ? vertical[v_read++] : none;
            continue;
        }
        if (more && s_read < slashes && (a->causal || slash[s_read] >= start)) {
            const int64_t next = edge - slash[s_read++], e = next > a->m ? next : a->m;
            if (e > hi + a->m) {
                slash_save(&l, lo, hi, kv_len, a->n);
                lo = e - a->m, hi = e;
            } else if (e > hi) {
                hi += a->m;
            }
            continue;
        }
        if (v_read == verticals || (a->causal && v > lo) || !more) {        /* what lies behind the tail are no keys */
            if (!a->causal && v_read == verticals && v < kv_len) slash_column(&l, v);
            slash_save(&l, lo, hi, kv_len, a->n);
            break;
        }
        if (!a->causal) slash_save(&l, lo, hi, kv_len, a->n);
        lo = tail, hi = tail + a->n;
        more = 0;
    }
    a->block_count[item]  = l.block_count;
    a->column_count[item] = l.column_count;
}

#ifndef __CUDACC__
#include "cuda/kernel.h"
enum { SLASH_BUILDS = 1 };
extern struct slash_build { sgk_kernel kernel; } attention_slash_builds[SLASH_BUILDS];

void check_attention_slash(void);
#endif

#endif
