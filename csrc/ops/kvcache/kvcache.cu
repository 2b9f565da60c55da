/*
 * Rows of k and v go to the places that out_loc names. 2 rows read, 2 written a token; bound by memory. A block has TOKENS tokens, so that
 * each thread has as many loads on their way before the first store; few tokens get a block each.
 *
 *   PIECE  uint4, uint32_t, uint16_t or uint8_t: what a thread copies at a time; divides every address and stride
 */
#include "kvcache.h"
#include "launch.cuh"

#define TOKENS STORE_TOKENS

/* Bytes from the start of a row to its piece i. */
DEVICE int64_t place(const struct store_rows *r, int64_t head_stride, uint32_t i, uint32_t each)
{
    if (r->heads == 1) return (int64_t)i * (int64_t)sizeof(PIECE);
    const uint32_t h = i / each;
    return h * head_stride + (int64_t)(i - h * each) * (int64_t)sizeof(PIECE);
}

extern "C" __global__ __launch_bounds__(256) void store_kv_cache(const __grid_constant__ store_kv_cache_args a)
{
    const int64_t first = (int64_t)blockIdx.x * a.tokens_per_block;
    const int     count = a.tokens - first < a.tokens_per_block ? (int)(a.tokens - first) : a.tokens_per_block;
    pdl_wait();
    int64_t slot[TOKENS];
    #pragma unroll
    for (int j = 0; j < TOKENS; ++j) {
        slot[j] = j < count ? load_index(a.out_loc, first + j, a.index == SGK_I64) : -1;
        if (slot[j] >= a.slots) slot[j] = -1;
    }
    const uint32_t k_pieces = a.rows[0].pieces, pieces = k_pieces + a.rows[1].pieces;
    for (uint32_t p = threadIdx.x; p < pieces; p += blockDim.x) {
        const struct store_rows *r = &a.rows[p >= k_pieces];
        const uint32_t           i = p >= k_pieces ? p - k_pieces : p, each = (uint32_t)(r->head_bytes / (int64_t)sizeof(PIECE));
        const char              *from = (const char *)r->fresh + first * r->fresh_row + place(r, r->fresh_head, i, each);
        char                    *to   = (char *)r->cache + place(r, r->cache_head, i, each);
        PIECE                    piece[TOKENS];
        #pragma unroll
        for (int j = 0; j < TOKENS; ++j)
            if (slot[j] >= 0) piece[j] = *(const PIECE *)(from + j * r->fresh_row);
        #pragma unroll
        for (int j = 0; j < TOKENS; ++j)
            if (slot[j] >= 0) *(PIECE *)(to + slot[j] * r->cache_row) = piece[j];
    }
    pdl_release();
}
