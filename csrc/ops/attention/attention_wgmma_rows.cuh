/*
 * attention_wgmma: the warps that copy where keys and values lie too scattered for boxes: row by row (cp.async). Each of the four has a quarter
 * of every tile's rows; one also brings queries, another finds work.
 */
#pragma once
#include "attention_wgmma.cuh"

#define SHARERS  4
#define SHARE    (KEYS / SHARERS)               /* rows of a tile that a warp copies, at most one a lane */
#define FINDER   3                              /* the warp that also finds work */
#define ARRIVALS (32 * SHARERS)

/* Where rows of a tile begin; null: nowhere, which reads as zeros. Values are copied a tile later than keys. */
__shared__ const T *rows_k[SHARERS][SHARE], *rows_v[SHARERS][2][SHARE];

/* What a lane knows of its row of the tile that comes next: the page, which is asked for a tile ahead. */
struct share {
    int      first;                             /* row of the tile at which the warp's share begins */
    uint32_t inverse;                           /* (2^32 - 1) / page_size */
    int      page;
};

DEVICE void ask(const attention_args *a, const work *w, share *m, int tile, int lane)
{
    const int slot = tile * KEYS + m->first + lane;
    m->page        = a->page_table[w->n * a->page_table_stride + page_of(a, m->inverse, w->k_row + (slot < w->sk ? slot : w->sk - 1))];
}

/* Writes where the rows of a tile begin; returns whether all are somewhere. */
DEVICE bool find_rows(const attention_args *a, const work *w, const share *m, int tile, const T **k, const T **v, int lane)
{
    bool missing = false;
    __syncwarp();                               /* what was written before has been read */
    if (lane < SHARE) {
        const int slot = tile * KEYS + m->first + lane, place = w->k_row + slot, row = place - page_of(a, m->inverse, place) * a->page_size;
        missing = slot >= w->sk || m->page < 0 || m->page >= a->kv_batches;
        k[lane] = missing ? nullptr : (const T *)a->k + w->kv_head * a->k_head_stride + m->page * a->k_batch_stride + row * a->k_row_stride;
        v[lane] = missing ? nullptr : (const T *)a->v + w->kv_head * a->v_head_stride + m->page * a->v_batch_stride + row * a->v_row_stride;
    }
    const bool all = !__any_sync(~0u, missing);
    __syncwarp();
    return all;
}

/* Four rows at a time for each slab, each 16-byte piece where the swizzle has it. Where rows begin is read in front of all copies, so that
 * these do not wait for it one by one. `nowhere` is an address that is not read. */
DEVICE void copy_share(const share *m, const T *const *at, bool all, const T *nowhere, int dim, int slabs, uint32_t to, int lane)
{
    const int      first = m->first + lane / 8;
    const uint32_t even = to + first * 128 + ((lane % 8 ^ (first & 7)) << 4), odd = even ^ 64;
    at += lane / 8;
    if (all && dim == slabs * 64) {
        const T *row[SHARE / 4];
        #pragma unroll
        for (int i = 0; i < SHARE / 4; ++i) row[i] = at[4 * i] + lane % 8 * 8;
        #pragma unroll
        for (int i = 0; i < SHARE / 4; ++i)
            for (int s = 0; s < slabs; ++s) cp_async16((i % 2 ? odd : even) + i * 512 + s * KV_SLAB, row[i] + s * 64, true);
        return;
    }
    #pragma unroll 1
    for (int i = 0; i < SHARE / 4; ++i)
        for (int s = 0; s < slabs; ++s) {
            const T   *row    = at[4 * i];
            const int  column = s * 64 + lane % 8 * 8;
            const bool inside = row && column < dim;
            cp_async16((i % 2 ? odd : even) + i * 512 + s * KV_SLAB, inside ? row + column : nowhere, inside);
        }
}

/* Keys of a tile, then values of the tile before, as the warps that multiply give their stages back. */
DEVICE void copy(const attention_wgmma_args *p, uint32_t base, int warp, int lane)
{
    const attention_args *a = &p->a;
    const work           *w = nullptr;
    share                 m = { warp * SHARE, 0xffffffffu / (uint32_t)a->page_size, 0 };
    ring                  k = { 0, 0 }, v = { 0, 0 };
    int                   count = 0, tile = 0, list = 0;
    bool                  begins = true, behind = false, all = false, all_before = false;
    if (warp == FINDER) start_finding(p, lane), find_next(p, lane);
    for (;;) {
        if (begins) {
            w = work_of(count);
            if (w->n >= 0) tile = w->high - 1, ask(a, w, &m, tile, lane);
        }
        const bool more = w->n >= 0;
        if (more) {
            all = find_rows(a, w, &m, tile, rows_k[warp], rows_v[warp][list], lane);
            if (tile > w->low) ask(a, w, &m, tile - 1, lane);
            mbarrier_wait(shared_address(&bar.k_empty[k.stage]), k.lap ^ 1);
            copy_share(&m, rows_k[warp], all, (const T *)a->k, a->dim, SLABS, base + Q_PLACES * Q_BYTES + k.stage * K_BYTES, lane);
            cp_async_arrive(shared_address(&bar.k_full[k.stage]));
            advance(&k);
        }
        if (behind) {
            mbarrier_wait(shared_address(&bar.v_empty[v.stage]), v.lap ^ 1);
            copy_share(&m, rows_v[warp][list ^ 1], all_before, (const T *)a->v, a->dim_v, V_SLABS, base + Q_PLACES * Q_BYTES + STAGES * K_BYTES + v.stage * V_BYTES, lane);
            cp_async_arrive(shared_address(&bar.v_full[v.stage]));
            advance(&v);
        }
        if (begins && warp == 0) copy_q(p, w, base, count, lane);
        if (!more) break;
        if (begins) {
            ++count;
            if (warp == FINDER) named_sync(WANTED, 64), find_next(p, lane);
        }
        all_before = all, list ^= 1, behind = true;
        begins = tile-- == w->low;
    }
    pdl_release();
}
