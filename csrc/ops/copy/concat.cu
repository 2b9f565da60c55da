/*
 * Rows of out are rows of a and of b, one behind the other. Each byte is read once and written once; bound by memory.
 *
 * All pieces of out are numbered in one line, so that a block is full whatever the length of a row. Where a block's first piece lies
 * takes two divisions in 64 bits; from there on 32 bits suffice, because a row has fewer than 2^31 pieces.
 *
 *   PIECE  uint4, uint2, uint32_t, uint16_t or uint8_t: what a thread copies at a time; divides every address, stride and length
 */
#include "copy.h"
#include "launch.cuh"
#include "types.cuh"

#define THREADS 256
#define STEPS   4                               /* pieces a thread has in flight */

extern "C" __global__ __launch_bounds__(THREADS) void concat(const __grid_constant__ concat_args a)
{
    const uint32_t in_a = (uint32_t)(a.a.bytes / (int64_t)sizeof(PIECE)), each = in_a + (uint32_t)(a.b.bytes / (int64_t)sizeof(PIECE));
    const uint32_t heads = (uint32_t)a.heads;
    const int64_t  first = (int64_t)blockIdx.x * (THREADS * STEPS), line = first / each;
    const uint32_t offset = (uint32_t)(first - line * each);
    const int64_t  row0   = line / heads;
    const uint32_t head0  = (uint32_t)(line - row0 * heads);

    pdl_wait();
    PIECE  piece[STEPS];
    PIECE *to[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i) {
        const uint32_t j = offset + threadIdx.x + i * THREADS, lines = j / each, c = j - lines * each;
        const uint32_t h = head0 + lines, rows = h / heads, head = h - rows * heads;
        const int64_t  row = row0 + rows;
        to[i]              = 0;
        if (row >= a.rows) continue;
        to[i]    = (PIECE *)((char *)a.out + row * a.row_stride + head * a.head_stride) + c;
        piece[i] = c < in_a ? ((const PIECE *)((const char *)a.a.data + row * a.a.row_stride + head * a.a.head_stride))[c]
                            : ((const PIECE *)((const char *)a.b.data + row * a.b.row_stride + head * a.b.head_stride))[c - in_a];
    }
    #pragma unroll
    for (int i = 0; i < STEPS; ++i)
        if (to[i]) *to[i] = piece[i];
    pdl_release();
}
