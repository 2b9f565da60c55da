/*
 * Packs weights: a thread an element, neighbours in K; each is read and written once.
 *
 *   PIECE   uint8_t, uint16_t or uint32_t: an element
 *   SUMS    1: sums over K behind each block, of i8, a thread a column
 *   SMALL   1: f32 [K, N] of any format
 */
#include "gemm_packed.cuh"
#include "launch.cuh"

#define THREADS 256

extern "C" __global__ __launch_bounds__(THREADS) void pack(const __grid_constant__ pack_args a)
{
    pdl_wait();
    const int64_t id = (int64_t)blockIdx.x * THREADS + threadIdx.x;
#if SUMS
    const int64_t e = id / a.columns, n = id % a.columns;
    if (e < a.batch) {
        const int64_t       r    = packed_width(a.columns, n / PACKED_BLOCK);
        const int8_t *const from = (const int8_t *)a.weight + (e * a.columns + n) * a.depth;
        uint8_t *const      to   = (uint8_t *)a.packed + e * a.columns * (a.depth + 4) + packed_block_at(WEIGHT_I8, n / PACKED_BLOCK, a.depth, 0) + r * a.depth + n % PACKED_BLOCK * 4;
        int32_t             sum  = 0;
        for (int64_t k = 0; k < a.depth; ++k) sum += from[k];
        for (int i = 0; i < 4; ++i) to[i] = (uint8_t)((uint32_t)sum >> (8 * i));
    }
#else
    const int64_t k = a.depth ? id % a.depth : 0, n = a.depth ? id / a.depth % a.columns : 0, e = a.depth ? id / a.depth / a.columns : a.batch;
    if (e < a.batch) {
#if SMALL
        const int64_t at = n * a.depth + k;
        float         v;
        switch (a.dtype) {
        case SGK_F16:  v = to_f32(((const f16 *)a.weight)[at]); break;
        case SGK_BF16: v = to_f32(((const bf16 *)a.weight)[at]); break;
        case SGK_E4M3: v = e4m3_value(((const uint8_t *)a.weight)[at]); break;
        case SGK_I8:   v = ((const int8_t *)a.weight)[at]; break;
        case SGK_U8:   v = ((const uint8_t *)a.weight)[at]; break;
        default:       v = ((const float *)a.weight)[at]; break;
        }
        ((float *)a.packed)[k * a.columns + n] = v;
#else
        const int64_t block = n / PACKED_BLOCK, matrix = a.columns * (a.depth * (int64_t)sizeof(PIECE) + (a.format == WEIGHT_I8 ? 4 : 0));
        const int64_t at                     = e * matrix + packed_block_at(a.format, block, a.depth, 0) + packed_element_at(a.format, k, n % PACKED_BLOCK, packed_width(a.columns, block), a.depth, 0);
        *(PIECE *)((uint8_t *)a.packed + at) = ((const PIECE *)a.weight)[id];
#endif
    }
#endif
    pdl_release();
}
