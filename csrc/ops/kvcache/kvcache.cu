/*
 * Rows of k and v go to the places that out_loc names. 2 rows read, 2 written a token; bound by memory. A thread has COUNT pieces of one
 * row, and asks for all of them before it knows the place. A block is pieces x tokens.
 *
 *   PIECE  uint4, uint32_t, uint16_t or uint8_t: what is copied at a time; divides every address and stride
 *   COUNT  of a thread
 */
#include "kvcache.h"
#include "launch.cuh"

/* Bytes from the start of a row to its piece i. */
DEVICE int64_t place(const struct store_rows *r, int64_t head_stride, uint32_t i, uint32_t each)
{
    if (r->heads == 1) return (int64_t)i * (int64_t)sizeof(PIECE);
    const uint32_t h = i / each;
    return h * head_stride + (int64_t)(i - h * each) * (int64_t)sizeof(PIECE);
}

extern "C" __global__ __launch_bounds__(256) void store_kv_cache(const __grid_constant__ store_kv_cache_args a)
{
    const int64_t  token = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const uint32_t item = blockIdx.y * blockDim.x + threadIdx.x, k_items = a.rows[0].items;
    if (token >= a.tokens || item >= k_items + a.rows[1].items) return;

    const struct store_rows *r    = &a.rows[item >= k_items];
    const uint32_t           i    = item >= k_items ? item - k_items : item, each = (uint32_t)(r->head_bytes / (int64_t)sizeof(PIECE));
    const char              *from = (const char *)r->fresh + token * r->fresh_row;
    pdl_wait();
    const int64_t slot = load_index(a.out_loc, token, a.index == SGK_I64);
    PIECE         piece[COUNT];
    #pragma unroll
    for (uint32_t j = 0; j < COUNT; ++j)
        if (i + j * r->items < r->pieces) piece[j] = *(const PIECE *)(from + place(r, r->fresh_head, i + j * r->items, each));
    if (slot < 0 || slot >= a.slots) return;
    char *const to = (char *)r->cache + slot * r->cache_row;
    #pragma unroll
    for (uint32_t j = 0; j < COUNT; ++j)
        if (i + j * r->items < r->pieces) *(PIECE *)(to + place(r, r->cache_head, i + j * r->items, each)) = piece[j];
    pdl_release();
}
