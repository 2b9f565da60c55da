/* What the attention kernel of sm_90a is given beyond attention_args. */
#ifndef SGK_ATTENTION_WGMMA_H
#define SGK_ATTENTION_WGMMA_H
#include "attention.h"
#include "cuda/tma_map.h"

/* Tiles of queries of every sequence, longest first: attention_order.cu writes them where lengths differ. */
struct attention_tile { int32_t sequence, tile; };

struct attention_wgmma_args {
    struct attention_args a;
    /* Four dimensions: head size, rows, heads, batch (cache rows or pages). Boxes of 64 elements by as many rows as said. */
    sgk_tma_map q;                                          /* a tile of queries */
    sgk_tma_map k, v;                                       /* box_rows */
    sgk_tma_map v8, v1;                                     /* 8 and 1: the last tile of a sequence, so that no value behind its end is read */
    /* attention_order.cu writes them before. */
    int32_t               *next;                            /* pieces of work given out beyond one a block; null: each block takes every gridDim.x-th */
    struct attention_tile *order;                           /* null: every sequence has row_tiles tiles */
    int32_t               *order_count;
    int32_t                row_tiles;                       /* of the longest sequence */
    int32_t                at_once;                         /* heads (order null: of all sequences together) that share L2 */
    int32_t                box_rows;                        /* divides a tile of keys and, with pages, a page; GATHER does not use it */
    int32_t                tile_rows, tile_keys;
    float                  scale;                           /* of scores in powers of two, after the cap */
    float                  cap_inner, cap_outer;            /* 0: no cap; else a score is outer * (1 - 2 / (1 + 2^(inner * product))) */
};

#endif
