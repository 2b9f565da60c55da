/* Where the rows of a tile of TILE keys and values lie; TILE is the including file's. */
#pragma once
#include "attention.h"
#include "types.cuh"

/*
 * Threads below TILE each look up one key, first + threadIdx.x, in two steps: the page is asked for early and used when it has come.
 * Offsets are in elements, -1 for a key from `end` on and for one that has no place.
 */
DEVICE int tile_page(const attention_args *a, const attention_sequence *s, int n, int first, int end)
{
    const int key = first + (int)threadIdx.x;
    return (int)threadIdx.x < TILE && key < end ? attention_page_of(a, n, s->leftpad + key) : 0;
}

DEVICE void tile_rows(const attention_args *a, const attention_sequence *s, int64_t *key_at, int64_t *value_at, int page, int first, int end)
{
    if ((int)threadIdx.x >= TILE) return;
    const int             key    = first + (int)threadIdx.x;
    const attention_place p      = attention_place_in(a, s, page, s->leftpad + key);
    const bool            inside = key < end && p.batch >= 0;
    key_at[threadIdx.x]          = inside ? p.batch * a->k_batch_stride + p.row * a->k_row_stride : -1;
    value_at[threadIdx.x]        = inside ? p.batch * a->v_batch_stride + p.row * a->v_row_stride : -1;
}
