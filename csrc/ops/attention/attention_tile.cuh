/* Where the rows of a tile of TILE keys and values lie, TILE being the including file's, and what a row comes to. */
#pragma once
#include "attention.h"
#include "attention_score.cuh"

/* What a block does. The last rows of a sequence see most keys when causal: they go first. */
struct tile_part { int row_block, split, kv_head, n; };
DEVICE tile_part tile_part_of(const attention_args *a, unsigned block)
{
    const int row_block = a->row_blocks - 1 - (int)(block % a->row_blocks);
    block /= a->row_blocks;
    const int split = (int)(block % a->splits);
    block /= a->splits;
    return { row_block, split, (int)(block % a->kv_heads), (int)(block / a->kv_heads) };
}

/*
 * Threads below TILE each look up one key, first + threadIdx.x, in two steps: the page is asked for early and used when it has come.
 * Offsets are in elements, ATTENTION_NOWHERE for a key from `end` on and for one that has no place.
 */
DEVICE int tile_page(const attention_args *a, const attention_sequence *s, int n, int first, int end)
{
    const int key = first + (int)threadIdx.x, slot = s->leftpad + key;
    return (int)threadIdx.x < TILE && key < end && !(a->apart && slot >= s->used) ? attention_page_of(a, n, slot) : 0;
}

DEVICE void tile_rows(const attention_args *a, const attention_sequence *s, int n, int h, int64_t *key_at, int64_t *value_at, int page, int first, int end)
{
    if ((int)threadIdx.x >= TILE) return;
    const int           key = first + (int)threadIdx.x;
    const attention_row r   = attention_row_in(a, s, n, h, page, s->leftpad + key);
    key_at[threadIdx.x]     = key < end ? r.k : ATTENTION_NOWHERE;
    value_at[threadIdx.x]   = key < end && r.k != ATTENTION_NOWHERE ? r.v : ATTENTION_NOWHERE;
}

/*
 * The end of a row: sum of e^(s - most) over its keys; what its sum of values is multiplied by to be out, and the logarithm of its sum.
 * A sink takes part where the row is not one of several parts.
 */
struct row_result { float scale, lse; };
DEVICE row_result end_of_row(const attention_args *a, int h, float most, float sum)
{
    row_result e = { 0, a->splits > 1 ? -INF : a->empty_lse };
    if (sum == 0) return e;
    float base = most, weight = 1;
    if (a->sinks && a->splits == 1) {
        const float sink = sink_of(a, h);
        base             = fmaxf(most, sink);
        weight           = expf(most - base);
        sum              = sum * weight + expf(sink - base);
    }
    e.scale = weight / sum;
    e.lse   = base + logf(sum);
    return e;
}
