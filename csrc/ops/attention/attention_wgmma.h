/* What the attention kernel of sm_90a is given beyond attention_args. */
#ifndef SGK_ATTENTION_WGMMA_H
#define SGK_ATTENTION_WGMMA_H
#include "attention.h"
#include "cuda/tma_map.h"

/*
 * Rows of a tile are queries of one head; where a sequence has few, of all heads that share a key head (they are joined), the heads of one query
 * side by side. A sequence whose queries fill no more than half a tile then has at most as many tiles as it would have for each head alone.
 */
ATTENTION_FN int32_t attention_joins(const struct attention_args *a, int32_t queries, int32_t rows)
{
    return a->group > 1 && a->group <= rows && queries <= rows / 2;
}

/* Tiles under each key head of all sequences, joined ones and then the others, longest first: attention_order.cu writes them where lengths differ. */
struct attention_tile { int32_t sequence, tile, member; };      /* member: of the heads that share a key head; -1: all of them, joined */

struct attention_wgmma_args {
    struct attention_args a;
    /* Four dimensions: head size, rows, heads, batch (cache rows or pages). Boxes of 128 bytes by as many rows as said. */
    sgk_tma_map q;                                          /* a tile of queries */
    sgk_tma_map q_joined;                                   /* head size, heads, rows, batch: those of a group by as many rows as fit a tile */
    sgk_tma_map k, v;                                       /* box_rows */
    sgk_tma_map v8, v1;                                     /* 8 and 1: the last tile of a sequence, so that no value behind its end is read */
    /* attention_order.cu writes them before. */
    int32_t               *next;                            /* joined pieces of work and others that have been given out; null: each block takes every gridDim.x-th */
    struct attention_tile *order;                           /* null: every sequence has row_tiles tiles */
    int32_t               *order_count;                     /* of joined tiles; of all */
    int32_t                row_tiles;                       /* of the longest sequence */
    int32_t                joined;                          /* order null: all tiles are */
    int32_t                units;                           /* each with all tiles: key heads; order null: heads, or key heads where joined, of all sequences */
    int32_t                at_once;                         /* units that share L2 */
    int32_t                blocks, joined_blocks;           /* joined_blocks of them begin with joined pieces, where there are any */
    int32_t                box_rows;                        /* divides a tile of keys and, with pages, a page; rows of pages do not use it */
    int32_t                tile_rows, tile_keys;
    float                  scale;                           /* of scores in powers of two, after the cap */
    float                  cap_inner, cap_outer;            /* 0: no cap; else a score is outer * (1 - 2 / (1 + 2^(inner * product))) */
    int32_t                stores;                          /* results of whole tiles of queries leave as boxes of `out` */
    sgk_tma_map            out;                             /* as q */
};

#endif
