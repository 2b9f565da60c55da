/*
 * Before attention_wgmma: only the first piece of work of each block is given out yet; and where lengths differ, a list of the tiles of all
 * sequences, joined ones in front, those with the most keys first. One block; tiles with about as many keys come in any order, which changes
 * no result.
 */
#include "attention_wgmma.h"
#include "launch.cuh"

#define THREADS 1024
#define BINS    1024

/* Tiles of keys that a tile of queries meets, cut to half of the bins; the upper half is for joined ones. */
DEVICE int bin_of(const attention_wgmma_args *p, const attention_sequence *s, int tile, int queries, int width, bool joined)
{
    const int            first = tile * queries, last = first + queries < s->sq ? first + queries - 1 : s->sq - 1;
    const attention_keys from = attention_keys_of(&p->a, s, first), to = attention_keys_of(&p->a, s, last);
    const int            keys = to.end > from.begin ? to.end - from.begin : 0, bin = keys / width;
    return (bin < BINS / 2 ? bin : BINS / 2 - 1) + (joined ? BINS / 2 : 0);
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void attention_order(const __grid_constant__ attention_wgmma_args p)
{
    __shared__ int count[BINS], sums[32];
    const int      warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int      most = (p.a.max_k + (p.a.apart ? p.a.max_new : 0)) / (BINS / 2), width = most > p.tile_keys ? most : p.tile_keys;
    count[threadIdx.x] = 0;
    __syncthreads();
    pdl_wait();
    if (!p.order) {
        if (threadIdx.x == 0) p.next[0] = 0, p.next[1] = p.blocks;
        return;
    }
    for (int n = warp; n < p.a.batch; n += THREADS / 32) {
        const attention_sequence s       = attention_own_sequence(&p.a, n);
        const bool               joined  = attention_joins(&p.a, s.sq, p.tile_rows);
        const int                queries = joined ? p.tile_rows / p.a.group : p.tile_rows, members = joined ? 1 : p.a.group;
        for (int tile = lane; tile * queries < s.sq; tile += 32) atomicAdd(&count[bin_of(&p, &s, tile, queries, width, joined)], members);
    }
    __syncthreads();
    /* Where each bin begins, the last bin first. */
    const int mine = count[BINS - 1 - threadIdx.x];
    int       upto = mine;
    #pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int x = __shfl_up_sync(~0u, upto, d);
        if (lane >= d) upto += x;
    }
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    for (int w = 0; w < warp; ++w) upto += sums[w];
    count[BINS - 1 - threadIdx.x] = upto - mine;
    if (threadIdx.x == BINS / 2 - 1) {
        const int joined_blocks = upto ? p.joined_blocks : 0;
        p.order_count[0] = upto, p.next[0] = joined_blocks, p.next[1] = p.blocks - joined_blocks;
    }
    if (threadIdx.x == BINS - 1) p.order_count[1] = upto;
    __syncthreads();
    for (int n = warp; n < p.a.batch; n += THREADS / 32) {
        const attention_sequence s       = attention_own_sequence(&p.a, n);
        const bool               joined  = attention_joins(&p.a, s.sq, p.tile_rows);
        const int                queries = joined ? p.tile_rows / p.a.group : p.tile_rows, members = joined ? 1 : p.a.group;
        for (int tile = lane; tile * queries < s.sq; tile += 32) {
            attention_tile *to = p.order + atomicAdd(&count[bin_of(&p, &s, tile, queries, width, joined)], members);
            for (int member = 0; member < members; ++member) to[member] = { n, tile, joined ? -1 : member };
        }
    }
    pdl_release();
}
