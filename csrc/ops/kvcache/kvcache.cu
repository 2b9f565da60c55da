/*
 * Rows of k and v go to the places that out_loc names. 2 rows read, 2 written a token; bound by memory. A thread copies one piece, and asks
 * for it before it knows the place: it takes few registers, so that there are as many threads as a processor holds. A block is pieces x
 * tokens.
 *
 *   PIECE  uint4, uint32_t, uint16_t or uint8_t: what is copied at a time; divides every address and stride
 */
#include "kvcache.h"
#include "launch.cuh"
#include "order.cuh"

/* Bytes from the start of a row to its piece i. */
DEVICE int64_t place(const struct store_rows *r, int64_t head_stride, uint32_t i)
{
    if (r->heads == 1) return (int64_t)i * (int64_t)sizeof(PIECE);
    const uint32_t each = (uint32_t)(r->head_bytes / (int64_t)sizeof(PIECE)), h = i / each;
    return h * head_stride + (int64_t)(i - h * each) * (int64_t)sizeof(PIECE);
}

extern "C" __global__ __launch_bounds__(256) void store_kv_cache(const __grid_constant__ store_kv_cache_args a)
{
    const int64_t  token = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const uint32_t piece = blockIdx.y * blockDim.x + threadIdx.x, k_pieces = a.rows[0].pieces;
    if (token >= a.tokens || piece >= k_pieces + a.rows[1].pieces) return;

    const bool               is_v = piece >= k_pieces;
    const struct store_rows *r    = &a.rows[is_v];
    const uint32_t           i    = is_v ? piece - k_pieces : piece;
    pdl_wait();
    pdl_release();
    const int64_t slot  = load_index(a.out_loc, token, a.index == SGK_I64);
    PIECE         fresh = *(const PIECE *)((const char *)r->fresh + token * r->fresh_row + place(r, r->fresh_head, i));
    on_its_way(fresh);
    if (slot >= 0 && slot < a.slots) *(PIECE *)((char *)r->cache + slot * r->cache_row + place(r, r->cache_head, i)) = fresh;
}
