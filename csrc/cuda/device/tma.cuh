/*
 * The copy engine of sm_90 (TMA): boxes of a tensor to shared memory and back, started by one thread. The tensor, its box and its swizzle
 * are a sgk_tma_map within the kernel's __grid_constant__ arguments (made by sgk_cuda_tensor_map). Coordinates are elements, innermost
 * first; they may lie outside, where loads give zeros and stores write nothing; rows that do take the engine longer than those within (tma_inside). The innermost coordinate must be a multiple of 16
 * bytes. Shared memory: aligned to 128 bytes; to 1024 with the 128-byte swizzle, 512 with that of 64.
 *
 * A swizzle moves the 16-byte pieces of a row so that 8 rows meet all banks. In a box whose rows fill the span (128 or 64 bytes), piece p
 * of row r lies at place
 *
 *     128 bytes   p ^ (r & 7)             64 bytes   p ^ (r >> 1 & 3)
 */
#pragma once
#include "cuda/tma_map.h"
#include "types.cuh"

/*
 * Where a tile of `size` rows that would begin at `first` does begin, so that its box lies within the tensor's rows, if these are as many: the last tile begins
 * earlier. What it shares with the one before it both compute, with the same bits. On an H200 a tile of 128 rows of which 64 were outside took up to 1.7
 * times as long as a whole one.
 */
DEVICE int64_t tma_inside(int64_t first, int size, int64_t rows) { return first + size > rows && rows >= size ? rows - size : first; }

DEVICE void tma_prefetch_map(const sgk_tma_map *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

/* Brings a multiple of 16 bytes, at an address of that alignment, to L2; needs no map. */
DEVICE void l2_prefetch(const void *from, int bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}

/* Brings the box to L2. Like l2_prefetch it is safe while another kernel may write what the box holds: in L2 all see the same. */
DEVICE void tma_prefetch2(const sgk_tma_map *map, int x, int y)
{
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory");
}
DEVICE void tma_prefetch3(const sgk_tma_map *map, int x, int y, int z)
{
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(x), "r"(y), "r"(z) : "memory");
}

DEVICE void tma_prefetch4(const sgk_tma_map *map, int x, int y, int z, int w)
{
    asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(map), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

/* The bytes of the whole box arrive at the mbarrier. */
DEVICE void tma_load2(uint32_t to, const sgk_tma_map *map, int x, int y, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(barrier) : "memory");
}

DEVICE void tma_load4(uint32_t to, const sgk_tma_map *map, int x, int y, int z, int w, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier) : "memory");
}

DEVICE void tma_load3(uint32_t to, const sgk_tma_map *map, int x, int y, int z, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier) : "memory");
}

/* To the same address in every block of the cluster whose bit is set in `blocks`; the bytes arrive at the barrier of each. */
DEVICE void tma_load3_multicast(uint32_t to, const sgk_tma_map *map, int x, int y, int z, uint32_t barrier, uint32_t blocks)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"((uint16_t)blocks) : "memory");
}

/*
 * Writers of the box: async_fence(), then a barrier among them; then one thread: tma_store2, tma_store_commit. Before the box is written
 * again, and before the block ends, that thread waits until all but its newest n groups have been read (tma_store_wait_read).
 */
DEVICE void tma_store2(const sgk_tma_map *map, int x, int y, uint32_t from)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y), "r"(from) : "memory");
}
DEVICE void tma_store3(const sgk_tma_map *map, int x, int y, int z, uint32_t from)
{
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map), "r"(x), "r"(y), "r"(z), "r"(from) : "memory");
}
DEVICE void tma_store4(const sgk_tma_map *map, int x, int y, int z, int w, uint32_t from)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(from) : "memory");
}
DEVICE void tma_store_commit(void) { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
#define tma_store_wait_read(n) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory")

/* Makes ordinary writes to shared memory visible to TMA and wgmma. */
DEVICE void async_fence(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
