/*
 * attention_wgmma, boxes of calls with a page table: a warp looks up where boxes begin for as many tiles as fill it, a box a lane, when it has used
 * up those that it knows: what warps that copy do beside them is what warps that multiply wait for.
 */
#pragma once

struct ahead {
    int from;                                   /* the lane of the tile's first box; 32: none are known */
    int row, batch;
};

__shared__ int boxes_k, boxes_v;                /* of a tile, for each of the two warps; kept here: registers are few */

/* Where a lane's box of a tile begins, for the lanes that have one. It stands in front of the wait for the stage. */
DEVICE place box_of(const attention_wgmma_args *p, const work *w, int tile, ahead *x, const int &boxes, int lane)
{
    place at = { 0, 0 };
    x->from += boxes;
    if (x->from + boxes > 32) {
        const int behind = lane / boxes;
        if (tile - behind >= w->low) at = place_of(&p->a, w, (tile - behind) * KEYS + (lane - behind * boxes) * p->box_rows);
        x->from = 0, x->row = at.row, x->batch = at.batch;
        asm volatile("" : "+r"(x->row), "+r"(x->batch));
    }
    at.row = __shfl_sync(~0u, x->row, x->from + lane), at.batch = __shfl_sync(~0u, x->batch, x->from + lane);
    return at;
}

DEVICE void load_k(const attention_wgmma_args *p, const work *w, int tile, uint32_t base, ring *r, ahead *x, int lane)
{
    const uint32_t to = base + r->stage * K_BYTES, arrived = shared_address(&bar.k_full[r->stage]);
    const place    at = box_of(p, w, tile, x, boxes_k, lane);
    mbarrier_wait(shared_address(&bar.k_empty[r->stage]), r->lap ^ 1);
    if (lane == 0) mbarrier_expect(arrived, K_BYTES);
    __syncwarp();
    const int row = lane * p->box_rows;
    if (row < KEYS) load_box(to + row * 128, &p->k, SLABS, at, w->kv_head, arrived);
    advance(r);
}

DEVICE void load_v(const attention_wgmma_args *p, const work *w, int tile, uint32_t base, ring *r, ahead *x, int lane)
{
    const uint32_t to = base + r->stage * V_BYTES, arrived = shared_address(&bar.v_full[r->stage]);
    const int      first = tile * KEYS;
    const bool     whole = first + KEYS <= w->sk;
    place          at    = { 0, 0 };
    if (whole) at = box_of(p, w, tile, x, boxes_v, lane);
    mbarrier_wait(shared_address(&bar.v_empty[r->stage]), r->lap ^ 1);
    if (lane == 0) mbarrier_expect(arrived, V_BYTES);
    __syncwarp();
    if (whole) {
        const int row = lane * p->box_rows;
        if (row < KEYS) load_box(to + row * 128, &p->v, V_SLABS, at, w->kv_head, arrived);
    } else {
        load_last_v(p, w, first, to, arrived, lane);
    }
    advance(r);
}

DEVICE void copy_k(const attention_wgmma_args *p, uint32_t base, int lane)
{
    ring  k = { 0, 0 };
    ahead x = { 32, 0, 0 };
    if (lane == 0) boxes_k = KEYS / p->box_rows;
    __syncwarp();
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) return;
        x.from = 32;
        for (int tile = w->high - 1; tile >= w->low; --tile) load_k(p, w, tile, base + Q_PLACES * Q_BYTES, &k, &x, lane);
    }
}

DEVICE void copy_v(const attention_wgmma_args *p, uint32_t base, int lane)
{
    ring  v = { 0, 0 };
    ahead x = { 32, 0, 0 };
    if (lane == 0) boxes_v = KEYS / p->box_rows;
    __syncwarp();
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) return;
        x.from = 32;
        for (int tile = w->high - 1; tile >= w->low; --tile) load_v(p, w, tile, base + Q_PLACES * Q_BYTES + STAGES * K_BYTES, &v, &x, lane);
    }
}
