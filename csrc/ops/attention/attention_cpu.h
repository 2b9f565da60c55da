/* The work of one call on the CPU: pieces that any thread may take, in any order, with the same result. */
#ifndef SGK_ATTENTION_CPU_H
#define SGK_ATTENTION_CPU_H
#include <stdbool.h>
#include "attention.h"

/*
 * The rows of a sequence under one key head are its queries times the group's query heads: row r is query r / group, head
 * r % group of the group. An item is one block of rows under some key heads over one span of keys: under one head, or where rows are few
 * under as many as leave enough items for all threads, because their keys lie side by side in memory. Only sequences whose rows make
 * a single block are cut into spans, always at the same places; the thread that ends the last span of some heads combines them. No
 * number depends on how many heads an item has.
 */
enum {
    ATTENTION_ROWS     = 64,            /* rows in a block */
    ATTENTION_KEYS     = 64,            /* keys that are looked at together */
    ATTENTION_SPAN     = 512,           /* keys in a span, a multiple of ATTENTION_KEYS */
    ATTENTION_FEW_ROWS = 16,        /* up to here a row's dot products read the keys as they lie */
};

struct attention_plan {             /* one sequence */
    struct attention_sequence sequence;
    int32_t                   blocks, spans;
    int32_t                   heads;                  /* key heads of an item */
    int64_t                   first_item;             /* items of a sequence: [kv_heads / heads, rounded up][blocks][spans] */
    int64_t                   partials;               /* first float of its partial results, [kv_heads][spans][rows][padded_dim_v + 2] */
    int64_t                   first_unit;             /* its counters, one for each of its kv_heads / heads; only where spans > 1 */
};

struct attention_work {
    struct attention_args        a;
    const struct attention_plan *plan;
    int64_t                      items;
    bool                         once;                 /* keys and values are too many for the last-level cache */
    int32_t                      padded_dim, padded_dim_v, max_rows; /* head sizes rounded up to 16; rows of the largest item, all heads together */
    int64_t                     *next;                  /* the first item that nobody has taken */
    int32_t                     *left;                  /* for each counter: spans that are not done */
    float                       *partials;
    char                        *buffers;               /* one for each thread */
    int64_t                      buffer_bytes;
};

/* Floats of a thread's buffer; all its parts are a multiple of 16. */
static inline int64_t attention_buffer_floats(const struct attention_work *w, bool q_v)
{
    const int64_t rows = (w->max_rows + 15) / 16 * 16, key = w->padded_dim > ATTENTION_ROWS ? w->padded_dim : ATTENTION_ROWS;
    return rows * (w->padded_dim + w->padded_dim_v + (q_v ? w->padded_dim_v : 0)) + rows * ATTENTION_KEYS + 4 * rows + ATTENTION_KEYS * (key + w->padded_dim_v);
}

#endif
