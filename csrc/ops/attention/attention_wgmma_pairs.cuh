/*
 * attention_wgmma: the warps that copy where keys and values lie too scattered for boxes: row by row (cp.async). Two copy keys and two values, each half
 * of every tile's rows; one also brings queries, another finds work. They wait for what they have copied, so that warps that multiply need no fence.
 */
#pragma once
#include "attention_wgmma.cuh"

#define COPIERS  2
#define SHARE    (KEYS / COPIERS)               /* rows of a tile that a warp copies */
#define FINDS    (SHARE / 32)                   /* of these, rows that a lane finds */
#define FINDER   3                              /* the warp that also finds work */
#define ARRIVALS COPIERS
#define NOWHERE  0xffffffffu

/* Where rows of a tile begin, in pieces of 16 bytes behind the head's first row. */
__shared__ __align__(16) uint32_t places[2 * COPIERS][SHARE];

/* Keys or values. */
struct tensor {
    const T *data;
    int64_t  batch_stride, row_stride, head_stride;
    int      dim;
};

/* Four of a lane's rows, from number 4i on. */
DEVICE void copy_four(uint32_t to, const char *from, const uint4 &places, int i, int slabs)
{
    const uint32_t place[4] = { places.x, places.y, places.z, places.w };
    #pragma unroll
    for (int j = 4 * i; j < 4 * i + 4; ++j) {
        const char *begin = from + (uint64_t)place[j % 4] * 16;
        for (int s = 0; s < slabs; ++s) cp_async16((to ^ j % 8 << 4) + j / 8 * 4096 + j % 8 * 128 + s * KV_SLAB, begin + s * 128, true);
    }
}

DEVICE void copy_rows(const attention_wgmma_args *p, const tensor x, int slabs, uint32_t base, uint32_t to, uint32_t bytes, uint32_t full, uint32_t empty, bool keys, int warp, int lane)
{
    const attention_args *a       = &p->a;
    const uint32_t        inverse = 0xffffffffu / (uint32_t)a->page_size, page_pieces = (uint32_t)(x.batch_stride / 8), row_pieces = (uint32_t)(x.row_stride / 8);
    const int             first = warp % COPIERS * SHARE, rows = lane / 8 * 8;
    uint32_t *const       found = places[warp];
    const uint32_t        here  = shared_address(found + rows);
    ring                  r     = { 0, 0 };
    to += (first + rows) * 128;
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) {
            if (keys && warp == 0) copy_q(p, w, base, count, lane);
            return;
        }
        const char *from = (const char *)(x.data + w->kv_head * x.head_stride) + lane % 8 * 16;
        asm volatile("" : "+l"(from));          /* one pointer, not its parts */
        int      tile = w->high - 1;
        int      page[FINDS];                   /* of the lane's rows, which is asked for a tile ahead */
        uint32_t row[FINDS];
        auto     ask = [&](int tile) {
            #pragma unroll
            for (int i = 0; i < FINDS; ++i) {
                const int slot = tile * KEYS + first + 32 * i + lane, place = w->k_row + slot, at = page_of(a, inverse, place);
                row[i]  = (uint32_t)(place - at * a->page_size) * row_pieces;
                page[i] = slot < w->sk ? a->page_table[w->n * a->page_table_stride + at] : -1;
            }
        };
        ask(tile);
        /* Writes down where the lane's rows begin; returns whether all of the warp's are copied whole. */
        auto find_rows = [&]() {
            bool missing = false;
            __syncwarp();                       /* what was written before has been read */
            #pragma unroll
            for (int i = 0; i < FINDS; ++i) {
                const bool none      = (uint32_t)page[i] >= (uint32_t)a->kv_batches;
                found[32 * i + lane] = none ? NOWHERE : (uint32_t)page[i] * page_pieces + row[i];
                missing |= none;
            }
            const bool all = !__any_sync(~0u, missing) && x.dim == slabs * 64;
            __syncwarp();
            return all;
        };
        bool whole = find_rows();
        if (tile > w->low) ask(tile - 1);
        for (;; --tile) {
            const bool ends       = tile == w->low;
            uint4      first_four = shared_load16(here), next_four = shared_load16(here + 16);
            mbarrier_wait(empty + r.stage * 8, r.lap ^ 1);
            const uint32_t there = to + r.stage * bytes + (lane % 8 << 4);
            if (whole) {
                #pragma unroll
                for (int i = 0; i < SHARE / 16; ++i) {          /* four rows at a time; where the next begin is read in front of their copies */
                    const uint4 four = first_four;
                    first_four       = next_four;
                    if (i + 2 < SHARE / 16) next_four = shared_load16(here + (i + 2) / 2 * 128 + i % 2 * 16);
                    copy_four(there, from, four, i, slabs);
                }
            } else {
                #pragma unroll 1
                for (int i = 0; i < SHARE / 4; ++i) {
                    const uint32_t place = found[i / 8 * 32 + rows + i % 8];
                    for (int s = 0; s < slabs; ++s) {
                        const bool inside = place != NOWHERE && s * 64 + lane % 8 * 8 < x.dim;
                        cp_async16((there ^ i % 8 << 4) + i / 8 * 4096 + i % 8 * 128 + s * KV_SLAB, inside ? from + (uint64_t)place * 16 + s * 128 : (const char *)x.data, inside);
                    }
                }
            }
            if (!ends) {
                whole = find_rows();
                if (tile - 1 > w->low) ask(tile - 2);
            }
            cp_async_wait_all();
            async_fence();
            __syncwarp();
            if (lane == 0) mbarrier_arrive(full + r.stage * 8);
            advance(&r);
            if (tile == w->high - 1) {
                if (keys && warp == 0) copy_q(p, w, base, count, lane);
                if (!keys && warp == FINDER) named_sync(WANTED, 64), find_next(p, lane);
            }
            if (ends) break;
        }
    }
}

DEVICE void copy(const attention_wgmma_args *p, uint32_t base, int warp, int lane)
{
    const attention_args *a  = &p->a;
    const uint32_t        to = base + Q_PLACES * Q_BYTES;
    if (warp == FINDER) start_finding(p, lane), find_next(p, lane);
    if (warp < COPIERS) {
        const tensor k = { (const T *)a->k, a->k_batch_stride, a->k_row_stride, a->k_head_stride, a->dim };
        copy_rows(p, k, SLABS, base, to, K_BYTES, shared_address(bar.k_full), shared_address(bar.k_empty), true, warp, lane);
        pdl_release();
    } else {
        const tensor v = { (const T *)a->v, a->v_batch_stride, a->v_row_stride, a->v_head_stride, a->dim_v };
        copy_rows(p, v, V_SLABS, base, to + STAGES * K_BYTES, V_BYTES, shared_address(bar.v_full), shared_address(bar.v_empty), false, warp, lane);
    }
}
