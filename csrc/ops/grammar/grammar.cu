/*
 * Minus infinity where a token's bit is 0. Logits are only written: 16 bytes at once where all of them are masked, one by one where some
 * are, and not at all where none is. A block does THREADS * STEPS pieces of one row.
 *
 *   T      uint32_t or uint16_t, by a logit's size
 *   PIECE  logits in 16 bytes, where rows begin at 16 bytes; 1 takes any alignment
 */
#include "grammar.h"
#include "launch.cuh"
#include "types.cuh"

#define THREADS 256
#define STEPS   4

extern "C" __global__ __launch_bounds__(THREADS) void token_bitmask(const __grid_constant__ token_bitmask_args a)
{
    const int64_t  chunk  = THREADS * STEPS * PIECE;
    const uint32_t chunks = (uint32_t)((a.columns + chunk - 1) / chunk);

    pdl_wait();
    const int64_t row = a.indices ? a.indices[blockIdx.x / chunks] : blockIdx.x / chunks;
    if (row < 0 || row >= a.rows) return;                           /* such a row is passed over */
    T *const       logits  = (T *)a.logits + row * a.logits_stride;
    const int32_t *bitmask = a.bitmask + row * a.bitmask_stride;
    const int64_t  first   = blockIdx.x % chunks * chunk + threadIdx.x * PIECE;

    uint32_t allowed[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int64_t j = first + (int64_t)i * THREADS * PIECE;
        allowed[i]      = j < a.columns ? (uint32_t)bitmask[j / 32] >> (j % 32) : ~0u;
        if (j < a.columns && a.columns - j < PIECE) allowed[i] |= ~0u << (a.columns - j);
    }
    const uint32_t all = PIECE == 1 ? 1 : (1u << PIECE) - 1;
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const int64_t j = first + (int64_t)i * THREADS * PIECE;
#if PIECE == 1
        if (!(allowed[i] & all)) logits[j] = (T)a.fill;
#else
        if (!(allowed[i] & all)) *(uint4 *)(logits + j) = make_uint4(a.fill, a.fill, a.fill, a.fill);
        else if ((allowed[i] & all) != all) {
            #pragma unroll
            for (int k = 0; k < PIECE; ++k)
                if (!(allowed[i] >> k & 1)) logits[j + k] = (T)a.fill;
        }
#endif
    }
    pdl_release();
}
