/*
 * A block a token: its row of k and its row of v go to the place that out_loc names. 2 rows read, 2 written; bound by memory.
 *
 *   PIECE  uint4, uint32_t, uint16_t or uint8_t: what a thread copies at a time; divides every address and stride
 */
#include "kvcache.h"
#include "launch.cuh"

/* Four pieces are on their way before the first is stored. */
DEVICE void copy_row(const struct store_rows *r, int64_t slot, int64_t token)
{
    const int64_t each = r->head_bytes / (int64_t)sizeof(PIECE), all = r->heads * each;
    char *to = (char *)r->cache + slot * r->cache_row;
    const char *from = (const char *)r->fresh + token * r->fresh_row;
    for (int64_t first = threadIdx.x; first < all; first += 4 * (int64_t)blockDim.x) {
        PIECE piece[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t i = first + j * (int64_t)blockDim.x, h = r->heads == 1 ? 0 : i / each;
            if (i < all) piece[j] = *(const PIECE *)(from + h * r->fresh_head + (i - h * each) * (int64_t)sizeof(PIECE));
        }
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t i = first + j * (int64_t)blockDim.x, h = r->heads == 1 ? 0 : i / each;
            if (i < all) *(PIECE *)(to + h * r->cache_head + (i - h * each) * (int64_t)sizeof(PIECE)) = piece[j];
        }
    }
}

extern "C" __global__ __launch_bounds__(256)
void store_kv_cache(const __grid_constant__ store_kv_cache_args a)
{
    const int64_t token = blockIdx.x;
    pdl_wait();
    const int64_t slot = load_index(a.out_loc, token, a.index == SGK_I64);
    if (slot >= 0 && slot < a.slots) {
        copy_row(&a.rows[0], slot, token);
        copy_row(&a.rows[1], slot, token);
    }
    pdl_release();
}
