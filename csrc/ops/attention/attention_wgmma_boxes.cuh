/*
 * attention_wgmma: the warps that copy where keys and values come in boxes (TMA), of a whole tile or of as many rows as lie in one page. One
 * brings keys, one values, one queries, one finds work.
 */
#pragma once
#include "attention_wgmma.cuh"

#define ARRIVALS 1
#ifndef PAGES
#define PAGES 0
#endif

DEVICE void load_box(uint32_t to, const sgk_tma_map *map, int slabs, place at, int head, uint32_t arrived)
{
    for (int s = 0; s < slabs; ++s) tma_load4(to + s * KV_SLAB, map, s * ACROSS, at.row, head, at.batch, arrived);
}

/* The last values of a sequence: those behind its end must be zeros, since zero times NaN is NaN, so the tile is put together from boxes of 8 rows and
 * of one. */
DEVICE void load_last_v(const attention_wgmma_args *p, const work *w, int first, uint32_t to, uint32_t arrived, int lane)
{
    const attention_args *a       = &p->a;
    const place           outside = { 0, a->kv_batches };
    if (lane < KEYS / 8) {
        const int slot = first + 8 * lane;
        if (slot + 8 <= w->sk || slot >= w->sk)
            load_box(to + lane * 1024, &p->v8, V_SLABS, slot < w->sk ? place_of(a, w, slot) : outside, w->kv_head, arrived);
    }
    const int slot = (w->sk & ~7) + lane;
    if (w->sk & 7 && lane < 8)
        load_box(to + (slot - first) * 128, &p->v1, V_SLABS, slot < w->sk ? place_of(a, w, slot) : outside, w->kv_head, arrived);
}

#if PAGES == 1
#include "attention_wgmma_pages.cuh"
#else
enum { EARLY_PAGES = !E4M3 };       /* pages are looked up while the stage is waited for; with e4m3, where one warp brings all, when it is free */

/* A tile of keys or values; lanes share the boxes. */
DEVICE void load_boxes(const attention_wgmma_args *p, const sgk_tma_map *map, const work *w, int tile, uint32_t to, int slabs, uint32_t arrived, int lane)
{
    for (int i = lane * p->box_rows; i < KEYS; i += 32 * p->box_rows)
        load_box(to + i * 128, map, slabs, place_of(&p->a, w, tile * KEYS + i), w->kv_head, arrived);
}

/* Where a lane's box of a tile begins, for the lanes that have one. It stands in front of the wait for the stage. */
DEVICE place box_of(const attention_wgmma_args *p, const work *w, int tile, int row)
{
    place at = { 0, 0 };
    if (!EARLY_PAGES) return at;
    if (row < KEYS) at = place_of(&p->a, w, tile * KEYS + row);
    asm volatile("" : "+r"(at.row), "+r"(at.batch));
    return at;
}

DEVICE void load_k(const attention_wgmma_args *p, const work *w, int tile, uint32_t base, ring *r, int lane)
{
    const uint32_t to = base + r->stage * K_BYTES, arrived = shared_address(&bar.k_full[r->stage]);
    const int      row = lane * p->box_rows;
    const place    at  = box_of(p, w, tile, row);
    mbarrier_wait(shared_address(&bar.k_empty[r->stage]), r->lap ^ 1);
    if (lane == 0) mbarrier_expect(arrived, K_BYTES);
    __syncwarp();
    if (!EARLY_PAGES) load_boxes(p, &p->k, w, tile, to, SLABS, arrived, lane);
    else if (row < KEYS) load_box(to + row * 128, &p->k, SLABS, at, w->kv_head, arrived);
    advance(r);
}

DEVICE void load_v(const attention_wgmma_args *p, const work *w, int tile, uint32_t base, ring *r, int lane)
{
    const uint32_t to = base + r->stage * V_BYTES, arrived = shared_address(&bar.v_full[r->stage]);
    const int      first = tile * KEYS;
    const bool     whole = first + KEYS <= w->sk;
    const int      row   = whole ? lane * p->box_rows : KEYS;
    const place    at    = box_of(p, w, tile, row);
    mbarrier_wait(shared_address(&bar.v_empty[r->stage]), r->lap ^ 1);
    if (lane == 0) mbarrier_expect(arrived, V_BYTES);
    __syncwarp();
    if (whole) {
        if (!EARLY_PAGES) load_boxes(p, &p->v, w, tile, to, V_SLABS, arrived, lane);
        else if (row < KEYS) load_box(to + row * 128, &p->v, V_SLABS, at, w->kv_head, arrived);
    } else {
        load_last_v(p, w, first, to, arrived, lane);
    }
    advance(r);
}

DEVICE void copy_k(const attention_wgmma_args *p, uint32_t base, int lane)
{
    ring k = { 0, 0 };
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) return;
        for (int tile = w->high - 1; tile >= w->low; --tile) load_k(p, w, tile, base + Q_PLACES * Q_BYTES, &k, lane);
    }
}

DEVICE void copy_v(const attention_wgmma_args *p, uint32_t base, int lane)
{
    ring v = { 0, 0 };
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) return;
        for (int tile = w->high - 1; tile >= w->low; --tile) load_v(p, w, tile, base + Q_PLACES * Q_BYTES + STAGES * K_BYTES, &v, lane);
    }
}
#endif

DEVICE void copy_queries(const attention_wgmma_args *p, uint32_t base, int lane)
{
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        copy_q(p, w, base, count, lane);
        if (w->n < 0) return;
    }
}

/* A description is written when the one before it has been taken up, so that it is there when that is done. */
DEVICE void find(const attention_wgmma_args *p, int lane)
{
    start_finding(p, lane);
    while (find_next(p, lane)) named_sync(WANTED, 64);
}

DEVICE void copy(const attention_wgmma_args *p, uint32_t base, int warp, int lane)
{
    if (warp == 0) copy_k(p, base, lane), pdl_release();
    else if (warp == 1) copy_v(p, base, lane);
    else if (warp == 2) find(p, lane);
    else copy_queries(p, base, lane);
}
