/*
 * Writes k_new and v_new into the cache before attention reads it: a block a token. Bound by memory.
 *
 *   PIECE  uint4, uint32_t, uint16_t or uint8_t: what a thread copies at a time; divides every address and stride
 */
#include "attention.h"
#include "launch.cuh"

extern "C" __global__ __launch_bounds__(128, 8)        /* told how many blocks to fit, the assembler spills nothing to fit more */
    void attention_append(const __grid_constant__ attention_args a)
{
    const int n = (int)(blockIdx.x / (unsigned)a.max_new), token = (int)(blockIdx.x % (unsigned)a.max_new);
    pdl_wait();
    const attention_sequence s = attention_sequence_of(&a, n);
    if (token >= s.fresh) return;
    const attention_place p = attention_place_of(&a, &s, n, s.used + token);
    if (p.batch < 0) return;                                            /* a page that does not exist */

    const int64_t size     = a.dtype == SGK_F32 ? 4 : a.dtype == SGK_E4M3 ? 1
                                                                          : 2;
    const int     k_pieces = (int)(a.dim * size / (int64_t)sizeof(PIECE)), v_pieces = (int)(a.dim_v * size / (int64_t)sizeof(PIECE));
    char         *k     = (char *)a.k + (p.batch * a.k_batch_stride + p.row * a.k_row_stride) * size;
    char         *v     = (char *)a.v + (p.batch * a.v_batch_stride + p.row * a.v_row_stride) * size;
    const char   *k_new = (const char *)a.k_new + (n * a.k_new_batch_stride + (s.fresh_begin + token) * a.k_new_row_stride) * size;
    const char   *v_new = (const char *)a.v_new + (n * a.v_new_batch_stride + (s.fresh_begin + token) * a.v_new_row_stride) * size;
    for (int i = (int)threadIdx.x; i < a.kv_heads * (k_pieces + v_pieces); i += 128) {
        const int h = i / (k_pieces + v_pieces), piece = i % (k_pieces + v_pieces);
        if (piece < k_pieces) ((PIECE *)(k + h * a.k_head_stride * size))[piece] = ((const PIECE *)(k_new + h * a.k_new_head_stride * size))[piece];
        else ((PIECE *)(v + h * a.v_head_stride * size))[piece - k_pieces] = ((const PIECE *)(v_new + h * a.v_new_head_stride * size))[piece - k_pieces];
    }
    pdl_release();
}
