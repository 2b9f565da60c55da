/*
 * attention_wgmma_e4m3: the warps that copy. One brings queries, keys and values in boxes (TMA), one finds work, two transpose values, which the
 * matrix units read along the keys alone.
 *
 * Where [keys][columns] became [columns][keys], both in slabs of 128 bytes across, neither keys nor columns are in their order:
 *
 *     keys       of 16, at 4t .. 4t+3: keys 2t, 2t+1, 2t+8, 2t+9, which is where a thread's sums of scores are when four of them are one register
 *     columns    of 16, first the even ones, then the odd ones: so the 8 rows of a matrix that stmatrix writes meet all banks
 */
#pragma once
#include "attention_wgmma_boxes.cuh"

#define TRANSPOSERS 2
#define T_BYTES     (DIM_V * KEYS)
#define T_WIDTH     (KEYS == 128 ? 128 : 64)    /* bytes of keys in a slab of transposed values, and its swizzle */

static_assert(KEYS % T_WIDTH == 0 && (DIM_V == 64 || DIM_V == 128), "whole slabs of keys, and one of columns, shared by two warps");

/* Descriptor of 32 keys' transposed values; of a tile's first by its low word. */
DEVICE uint64_t values_operand(uint32_t tile, int i)
{
    const uint32_t low = tile + i / (T_WIDTH / 32) * (DIM_V * T_WIDTH / 16) + i % (T_WIDTH / 32) * WGMMA_STEP;
    return T_WIDTH == 128 ? wgmma_operand_of(low) : (uint64_t)0x80000020 << 32 | low;
}

/* The ring of values as they come. */
DEVICE void advance_v(ring *r)
{
    if (++r->stage == V_STAGES) r->stage = 0, r->lap ^= 1;
}

/* The warp's half of the columns. Lanes have a place of their own in the rows that they name to ldmatrix and stmatrix. */
DEVICE void transpose_tile(uint32_t from, uint32_t to)
{
    enum { PIECES = DIM_V / 32 };               /* of 16 columns */
    #pragma unroll
    for (int i = 0; i < KEYS / 32; ++i) {
        uint32_t x[PIECES][4];
        #pragma unroll
        for (int c = 0; c < PIECES; ++c) ldmatrix_x4_trans(x[c], (from ^ (c << 4)) + i * 4096);
        #pragma unroll
        for (int c = 0; c < PIECES; ++c)
            stmatrix_x4((to ^ (i % (T_WIDTH / 32) * 32)) + i / (T_WIDTH / 32) * (DIM_V * T_WIDTH) + c * (16 * T_WIDTH), __byte_perm(x[c][0], x[c][1], 0x6420), __byte_perm(x[c][0], x[c][1], 0x7531),
                        __byte_perm(x[c][2], x[c][3], 0x6420), __byte_perm(x[c][2], x[c][3], 0x7531));
    }
}

DEVICE void transpose(uint32_t base, int half, int lane)
{
    const uint32_t from = base + Q_BYTES + STAGES * K_BYTES + lane * 128 + (((half * (DIM_V / 32)) ^ (lane & 7)) << 4);
    const uint32_t to   = base + Q_BYTES + STAGES * K_BYTES + V_STAGES * V_BYTES + half * (DIM_V / 2 * T_WIDTH) + lane % 16 * T_WIDTH +
                          ((lane / 16 ^ (T_WIDTH == 128 ? lane & 7 : lane >> 1 & 3)) << 4);
    ring           r = { 0, 0 }, apart = { 0, 0 };
    ring *const    v = V_STAGES == STAGES ? &r : &apart;
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) return;
        for (int left = w->high - w->low; left > 0; --left) {
            mbarrier_wait(shared_address(&bar.v_full[v->stage]), v->lap);
            mbarrier_wait(shared_address(&bar.t_empty[r.stage]), r.lap ^ 1);
            transpose_tile(from + v->stage * V_BYTES, to + r.stage * T_BYTES);
            async_fence();
            __syncwarp();
            if (lane == 0) {
                mbarrier_arrive(shared_address(&bar.t_full[r.stage]));
                mbarrier_arrive(shared_address(&bar.v_empty[v->stage]));
            }
            advance(&r);
            if (V_STAGES != STAGES) advance_v(v);
        }
    }
}

DEVICE void copy_all(const attention_wgmma_args *p, uint32_t base, int lane)
{
    ring k = { 0, 0 }, v = { 0, 0 };
    for (int count = 0;; ++count) {
        const work *w = work_of(count);
        if (w->n < 0) {
            copy_q(p, w, base, count, lane);
            return;
        }
        for (int tile = w->high - 1; tile >= w->low; --tile) {
            load_k(p, w, tile, base + Q_BYTES, &k, lane);
            if (tile == w->high - 1) copy_q(p, w, base, count, lane);
            ring at = v;
            load_v(p, w, tile, base + Q_BYTES + STAGES * K_BYTES, &at, lane);
            advance_v(&v);
        }
    }
}

DEVICE void copy_and_transpose(const attention_wgmma_args *p, uint32_t base, int warp, int lane)
{
    if (warp == 0) copy_all(p, base, lane), pdl_release();
    else if (warp == 2) find(p, lane);
    else transpose(base, warp / 2, lane);
}
