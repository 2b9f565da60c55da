/*
 * Rows of out are rows of a and of b, one behind the other. Each byte is read once and written once; bound by memory.
 *
 * All heads of all rows are numbered in one line. A block is some of them, `lines`, times `width` pieces of each; a thread keeps its column
 * and takes STEPS heads, `lines` apart.
 *
 *   PIECE  uint4, uint2, uint32_t, uint16_t or uint8_t: what a thread copies at a time; divides every address, stride and length
 */
#include "copy.h"
#include "launch.cuh"
#include "types.cuh"

extern "C" __global__ __launch_bounds__(CONCAT_THREADS) void concat(const __grid_constant__ concat_args a)
{
    const uint32_t in_a = (uint32_t)(a.a.bytes / (int64_t)sizeof(PIECE)), each = in_a + (uint32_t)(a.b.bytes / (int64_t)sizeof(PIECE));
    const uint32_t lines = a.lines, line = divide(threadIdx.x, a.width), group = divide(blockIdx.x, a.chunks);
    const uint32_t c     = (blockIdx.x - group * a.chunks.by) * a.width.by + (threadIdx.x - line * a.width.by);
    const int64_t  first = (int64_t)group * (CONCAT_STEPS * lines) + line, last = a.rows * a.heads;
    if (line >= lines || c >= each) return;
    const bool        of_a       = c < in_a;
    const char *const from       = of_a ? (const char *)((const PIECE *)a.a.data + c) : (const char *)((const PIECE *)a.b.data + (c - in_a));
    const int64_t     row_stride = of_a ? a.a.row_stride : a.b.row_stride, head_stride = of_a ? a.a.head_stride : a.b.head_stride;
    char *const       to = (char *)((PIECE *)a.out + c);

    pdl_wait();
    pdl_release();
    PIECE   piece[CONCAT_STEPS];
    int64_t at[CONCAT_STEPS];
    #pragma unroll
    for (int i = 0; i < CONCAT_STEPS; ++i) {
        const int64_t n = first + i * lines, row = last >> 31 ? n / a.heads : divide((uint32_t)n, a.by_heads), head = n - row * a.heads;
        at[i] = row * a.row_stride + head * a.head_stride;
        if (n < last) piece[i] = *(const PIECE *)(from + row * row_stride + head * head_stride);
    }
    #pragma unroll
    for (int i = 0; i < CONCAT_STEPS; ++i)
        if (first + i * lines < last) *(PIECE *)(to + at[i]) = piece[i];
}
