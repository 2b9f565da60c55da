/*
 * Gathers rows: each byte is read once and written once; bound by memory.
 *
 * All pieces of output are numbered in one line, so that a block is full whatever the length of a row. Where a block's first piece lies
 * takes a division in 64 bits; from there on 32 bits suffice, because a row has fewer than 2^31 pieces.
 *
 *   PIECE  uint4, uint32_t, uint16_t or uint8_t: what a thread copies at a time; divides every address, stride and length
 */
#include "launch.cuh"
#include "moe.h"
#include "types.cuh"

#define THREADS 256
#define STEPS   4                               /* pieces a thread has in flight */

extern "C" __global__ __launch_bounds__(THREADS) void shuffle_rows(const __grid_constant__ shuffle_rows_args a)
{
    const uint32_t each  = (uint32_t)(a.bytes / (int64_t)sizeof(PIECE));
    const int64_t  first = (int64_t)blockIdx.x * (THREADS * STEPS), row0 = first / each;
    const uint32_t offset = (uint32_t)(first - row0 * each);

    pdl_wait();
    const PIECE *from[STEPS];
    PIECE       *to[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const uint32_t j = offset + threadIdx.x + i * THREADS, rows = j / each, c = j - rows * each;
        const int64_t  row = row0 + rows, source = row < a.rows ? load_index(a.map, row, a.wide_map) : -1;
        to[i]   = source >= 0 && source < a.sources ? (PIECE *)((char *)a.output + row * a.output_stride) + c : 0;
        from[i] = (const PIECE *)((const char *)a.input + source * a.input_stride) + c;
    }
    PIECE piece[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i)
        if (to[i]) piece[i] = *from[i];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i)
        if (to[i]) *to[i] = piece[i];
    pdl_release();
}
