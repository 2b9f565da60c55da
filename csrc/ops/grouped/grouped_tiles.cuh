/*
 * What kernels of products of groups with tiles of TILE_M x TILE_N share (macros, with MULTIPLIERS, threads that multiply): which tile is whose, and where its
 * results go.
 */
#pragma once
#include "barrier.cuh"
#include "grouped.cuh"
#include "mma.cuh"

struct corner { int m, n, group, matrix, left; };         /* left: rows from m on that are the group's */

/* Tile `id` of the cluster, and of it this block's. `lengths` is of the groups; where the first row says that rows are nobody's, group is -1. */
DEVICE corner find_tile(const grouped_wgmma_args *a, const int *lengths, int id, int rank)
{
    const grouped_args *g      = &a->g;
    const int           across = (a->n_tiles + a->pair_n - 1) / a->pair_n;
    int                 group = 0, start = 0, count = (int)g->rows, m, n;
    if (g->form >= GROUPED_MASKED) {
        int high = (int)g->groups;
        while (high - group > 1) {
            const int middle = (group + high) / 2;
            if (lengths[3 * middle] * across <= id) group = middle;
            else high = middle;
        }
        id -= lengths[3 * group] * across;
        start = lengths[3 * group + 1], count = lengths[3 * group + 2];
    }
    const int tiles = g->form >= GROUPED_MASKED ? (count + TILE_M - 1) / TILE_M : a->m_tiles;
    grouped_walk(id, (tiles + a->pair_m - 1) / a->pair_m, across, a->band, &m, &n);
    m = (m * a->pair_m + (a->pair_m > 1 ? rank : 0)) * TILE_M;
    n = (n * a->pair_n + (a->pair_n > 1 ? rank : 0)) * TILE_N;
    if (g->form == GROUPED_INDICES) {
        group = g->layout[m < count ? m / GROUPED_ALIGNMENT * GROUPED_ALIGNMENT : 0];
        if (group >= g->groups) group = -1;
    }
    return { start + m, n, group, g->form == GROUPED_MASKED ? group : 0, count - m };
}

/* What each group has: tiles before it (of one column of tiles), first row, rows; behind the last, all tiles. By all threads. */
DEVICE void count_tiles(const grouped_wgmma_args *a, int *lengths)
{
    const grouped_args *g = &a->g;
    for (int i = (int)threadIdx.x; i < (int)g->groups; i += MULTIPLIERS + 128) {
        const grouped_rows r     = grouped_rows_of(g, i);
        const int          tiles = (int)((r.count + TILE_M - 1) / TILE_M);
        lengths[3 * i]           = (tiles + a->pair_m - 1) / a->pair_m;
        lengths[3 * i + 1] = (int)r.start, lengths[3 * i + 2] = (int)r.count;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const int lane = (int)threadIdx.x, groups = (int)g->groups;
        int       before = 0;
        for (int first = 0; first <= groups; first += 32) {
            const int i = first + lane, own = i < groups ? lengths[3 * i] : 0;
            int       sum = own;
            #pragma unroll
            for (int o = 1; o < 32; o *= 2) {
                const int other = __shfl_up_sync(~0u, sum, o);
                if (lane >= o) sum += other;
            }
            if (i <= groups) lengths[3 * i] = before + sum - own;
            before += __shfl_sync(~0u, sum, 31);
        }
    }
    __syncthreads();
}

DEVICE int64_t out_place(const grouped_args *g, corner at, int64_t row, int64_t column)
{
    return at.matrix * g->out_group + (at.m + row) * g->out_stride + column;
}

DEVICE void put(const grouped_args *g, int64_t to, float v)
{
    if (g->out_dtype == SGK_F32) ((float *)g->out)[to] = v;
    else if (g->out_dtype == SGK_F16) from_f32((f16 *)g->out + to, v);
    else from_f32((bf16 *)g->out + to, v);
}

DEVICE uint32_t pack(bool half, float lo, float hi) { return half ? pack_f16x2(lo, hi) : pack_bf16x2(lo, hi); }

/* Whether a row of the tile is the group's. */
DEVICE bool wanted(const grouped_args *g, corner at, int row)
{
    return row < at.left && (g->form != GROUPED_INDICES || g->layout[at.m + row] == at.group);
}

/* A warp has done with a stage; both blocks of a pair write to it. */
DEVICE void release(uint32_t empty, int pair, int lane)
{
    if (pair == 1) {
        if (lane == 0) mbarrier_arrive(empty);
    } else if (lane < 2) {
        mbarrier_arrive_at(empty, (uint32_t)lane);
    }
}
