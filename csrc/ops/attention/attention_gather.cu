/*
 * Before attention_wgmma: the keys and values that a call sees, copied from their pages to where each sequence's follow each other, so that they
 * come in boxes of whole tiles. Places stay what they are. Bound by memory.
 */
#include "attention_gather.h"
#include "launch.cuh"

#define WARPS  (ATTENTION_GATHER_THREADS / 32)
#define EACH   (ATTENTION_GATHER_ROWS / WARPS)      /* places of a warp */
#define FLIGHT 4                                    /* pieces that a lane has on their way */

/* Zeros unless `there`: in place of a page that does not exist. */
DEVICE uint4 read(const char *from, bool there)
{
    uint4 x;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.u32 p, %5, 0;\n"
                 "mov.u32 %0, 0;\n"
                 "mov.u32 %1, 0;\n"
                 "mov.u32 %2, 0;\n"
                 "mov.u32 %3, 0;\n"
                 "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 "}"
                 : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w) : "l"(from), "r"((uint32_t)there));
    return x;
}

/* Where piece i of a row lies in its page, in bytes. */
DEVICE int64_t piece(const attention_gather_rows *p, int i)
{
    if (p->heads == 1) return i * 16;
    const int head = i / p->pieces;
    return head * p->from_head + (i - head * p->pieces) * 16;
}

extern "C" __global__ __launch_bounds__(ATTENTION_GATHER_THREADS, 4) void attention_gather(const __grid_constant__ attention_gather_args p)
{
    const attention_args        &a     = p.a;
    const attention_gather_rows *r     = &p.rows[blockIdx.x & 1];
    const int                    block = (int)(blockIdx.x / 2), n = block / p.blocks, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    pdl_release();
    pdl_wait();
    const attention_sequence s = attention_own_sequence(&a, n);
    if (s.sq == 0) return;
    /* Keys that any query sees, and those that share a tile with them. */
    const int       tile = p.tile_keys, begin = attention_keys_of(&a, &s, 0).begin / tile * tile;
    const int       end   = min((attention_keys_of(&a, &s, s.sq - 1).end + tile - 1) / tile * tile, s.sk);
    const int       first = (block % p.blocks * WARPS + warp) * EACH;
    attention_place mine  = { -1, 0 };
    if (lane < EACH && first + lane >= begin && first + lane < end) mine = attention_place_of(&a, &s, n, s.leftpad + first + lane);
    const int pieces = r->heads * r->pieces;
    #pragma unroll 1
    for (int at = lane; at - lane < pieces; at += 32 * FLIGHT) {
        int64_t from[FLIGHT];
        #pragma unroll
        for (int i = 0; i < FLIGHT; ++i) from[i] = piece(r, at + 32 * i);
        #pragma unroll 1
        for (int key = max(first, begin); key < min(first + EACH, end); ++key) {
            const int   batch = __shfl_sync(~0u, mine.batch, key - first), row = __shfl_sync(~0u, mine.row, key - first);
            const char *here  = (const char *)r->from + batch * r->from_page + row * r->from_row;
            char       *there = (char *)r->to + n * r->to_sequence + (s.leftpad + key) * r->to_row + at * 16;
            uint4       x[FLIGHT];
            #pragma unroll
            for (int i = 0; i < FLIGHT; ++i) x[i] = read(here + from[i], at + 32 * i < pieces && batch >= 0);
            #pragma unroll
            for (int i = 0; i < FLIGHT; ++i)
                if (at + 32 * i < pieces) *(uint4 *)(there + 512 * i) = x[i];
        }
    }
}
