/*
 * Gathers rows: each byte is read once and written once; bound by memory. 2^lanes_log2 threads of a block share a row, of which each takes
 * STEPS pieces; a block takes as many rows as fit.
 *
 *   PIECE  uint4, uint32_t, uint16_t or uint8_t: what a thread copies at a time; divides every address, stride and length
 */
#include "launch.cuh"
#include "moe.h"
#include "types.cuh"

#define THREADS SHUFFLE_THREADS
#define STEPS   SHUFFLE_STEPS

extern "C" __global__ __launch_bounds__(THREADS) void shuffle_rows(const __grid_constant__ shuffle_rows_args a)
{
    const int      lanes = 1 << a.lanes_log2;
    const uint32_t each = (uint32_t)(a.bytes / (int64_t)sizeof(PIECE)), group = divide(blockIdx.x, a.chunks), chunk = blockIdx.x - group * a.chunks.by;
    const int64_t  row = (int64_t)group * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2);
    const uint32_t c   = chunk * (STEPS * lanes) + (threadIdx.x & (lanes - 1));
    if (row >= a.rows) return;

    pdl_wait();
    pdl_release();
    const int64_t source = load_index(a.map, row, a.wide_map);
    if (source < 0 || source >= a.sources) return;                  /* such a row is left as it is */
    const PIECE *from = (const PIECE *)((const char *)a.input + source * a.input_stride) + c;
    PIECE       *to   = (PIECE *)((char *)a.output + row * a.output_stride) + c;
    PIECE        piece[STEPS];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i)
        if (c + i * lanes < each) piece[i] = from[i * lanes];
    #pragma unroll
    for (int i = 0; i < STEPS; ++i)
        if (c + i * lanes < each) to[i * lanes] = piece[i];
}
