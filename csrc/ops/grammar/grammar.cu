/*
 * Minus infinity where a token's bit is 0. What moves is the bits, each logit's memory that holds a masked one, and before that, where an
 * allowed one lies among them, what was there: memory is written 32 bytes at a time, and writing a part of them costs more than reading
 * them first. So both 16-byte pieces of such 32 bytes are written, even if one of them stays as it is. A block does THREADS * STEPS
 * pieces of one row.
 *
 *   T      uint32_t or uint16_t, by a logit's size
 *   PIECE  logits in 16 bytes, where rows begin at 16 bytes; 1 takes any alignment, and writes one by one
 */
#include "grammar.h"
#include "launch.cuh"
#include "order.cuh"
#include "types.cuh"

#define THREADS 256
#define STEPS   2
#define CHUNK   (THREADS * STEPS * PIECE)
#define SPAN    (PIECE == 1 ? 1 : 2 * PIECE)                        /* logits in 32 bytes */
#define BITS(n) ((1u << (n)) - 1)

#if PIECE == 4
DEVICE uint32_t keep(uint32_t x, uint32_t allowed, uint32_t fill) { return allowed & 1 ? x : fill; }
DEVICE uint4 masked(uint4 p, uint32_t allowed, uint32_t fill)
{
    return make_uint4(keep(p.x, allowed, fill), keep(p.y, allowed >> 1, fill), keep(p.z, allowed >> 2, fill), keep(p.w, allowed >> 3, fill));
}
#elif PIECE == 8
DEVICE uint32_t keep(uint32_t x, uint32_t allowed, uint32_t fill)
{
    const uint32_t bits = (allowed & 1 ? 0xffffu : 0) | (allowed & 2 ? 0xffff0000u : 0);
    return (x & bits) | (fill & ~bits);
}
DEVICE uint4 masked(uint4 p, uint32_t allowed, uint32_t fill)
{
    return make_uint4(keep(p.x, allowed, fill), keep(p.y, allowed >> 2, fill), keep(p.z, allowed >> 4, fill), keep(p.w, allowed >> 6, fill));
}
#endif

extern "C" __global__ __launch_bounds__(THREADS) void token_bitmask(const __grid_constant__ token_bitmask_args a)
{
    const uint32_t nth = divide(blockIdx.x, a.chunks);

    pdl_wait();
    pdl_release();
    const int64_t row = a.indices ? a.indices[nth] : nth;
    if (row < 0 || row >= a.rows) return;                           /* such a row is passed over */
    const int64_t  first   = (int64_t)(blockIdx.x - nth * a.chunks.by) * CHUNK;
    const int      columns = (int)min(a.columns - first, (int64_t)CHUNK);
    T *const       logits  = (T *)a.logits + row * a.logits_stride + first;
    const int32_t *bitmask = a.bitmask + row * a.bitmask_stride + first / 32;

    /* Columns without a bit count as allowed. A piece that reaches behind the last column, and maybe behind the row, is not written whole. */
    uint32_t allowed[STEPS];
    bool     some[STEPS];                                           /* of the span is masked */
#if PIECE > 1
    uint4 piece[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int j = (i * THREADS + (int)threadIdx.x) * PIECE;
        piece[i]    = make_uint4(a.fill, a.fill, a.fill, a.fill);
        if (a.early && j + PIECE <= columns) piece[i] = *(const uint4 *)(logits + j);
    }
#endif
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int j = (i * THREADS + (int)threadIdx.x) * PIECE, left = columns - j / 32 * 32;
        uint32_t  word = j < columns ? (uint32_t)bitmask[j / 32] : ~0u;
        if (left > 0 && left < 32) word |= ~0u << left;
        allowed[i] = word >> j % 32 & BITS(PIECE);
        some[i]    = (word >> (j % 32 & ~(SPAN - 1)) & BITS(SPAN)) != BITS(SPAN);
    }
#if PIECE > 1
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int j = (i * THREADS + (int)threadIdx.x) * PIECE;
        if (!a.early && some[i] && allowed[i] && j + PIECE <= columns) piece[i] = *(const uint4 *)(logits + j);
    }
#endif
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int j = (i * THREADS + (int)threadIdx.x) * PIECE;
        if (!some[i]) continue;
#if PIECE > 1
        if (j + PIECE <= columns) {
            store16(logits + j, masked(piece[i], allowed[i], a.fill));
            continue;
        }
#endif
        for (int k = 0; k < PIECE; ++k)
            if (!(allowed[i] >> k & 1)) logits[j + k] = (T)a.fill;
    }
}
