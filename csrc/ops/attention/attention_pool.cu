/*
 * Looks the tokens of each sequence up in req_to_token, and writes the new key and value where they belong. A block takes 4096 places of a
 * sequence; the first one of a sequence does the rest.
 *
 *   ELEMENT  uint16_t or uint32_t: an element of the pool
 */
#include "attention_pool.h"
#include "launch.cuh"

#define PLACES 4096

extern "C" __global__ __launch_bounds__(256, 4) void attention_pool(const __grid_constant__ attention_pool_args a)
{
    const int b = (int)(blockIdx.x / (unsigned)a.blocks), part = (int)(blockIdx.x % (unsigned)a.blocks);
    pdl_wait();
    const pool_sequence s   = pool_sequence_of(&a, b);
    const int64_t       end = s.keys < (int64_t)(part + 1) * PLACES ? s.keys : (int64_t)(part + 1) * PLACES;
    for (int64_t j = (int64_t)part * PLACES + threadIdx.x; j < end; j += 256) a.table[(int64_t)b * a.width + j] = pool_slot(&a, &s, j);
    if (part) return;

    if (threadIdx.x == 0) {
        a.lengths[b] = (int)s.keys;
        if (a.extend_seq_lens) {
            const int64_t start = pool_index(a.extend_start_loc, b, a.wide);
            a.starts[b]         = (int)start;
            if (b == a.batch - 1) a.starts[b + 1] = (int)(start + pool_index(a.extend_seq_lens, b, a.wide));
        }
    }
    const int64_t slot = a.key ? a.loc[b] : -1;
    if (slot < 0 || slot >= a.slots) return;
    const ELEMENT *key = (const ELEMENT *)a.key + b * a.key_stride, *value = (const ELEMENT *)a.value + b * a.value_stride;
    ELEMENT       *k = (ELEMENT *)a.k_cache + slot * a.k_stride, *v = (ELEMENT *)a.v_cache + slot * a.v_stride;
    for (int i = (int)threadIdx.x; i < a.kv_heads * a.dim; i += 256) k[i / a.dim * a.k_head_stride + i % a.dim] = key[i / a.dim * a.key_head_stride + i % a.dim];
    for (int i = (int)threadIdx.x; a.value && i < a.kv_heads * a.dim_v; i += 256)
        v[i / a.dim_v * a.v_head_stride + i % a.dim_v] = value[i / a.dim_v * a.value_head_stride + i % a.dim_v];
    pdl_release();
}
