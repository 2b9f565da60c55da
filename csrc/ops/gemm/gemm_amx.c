/*
 * linear in bf16 for many rows, on the matrix units of AMX: tiles of 16 x 16 sums that take 32 elements of K at a time.
 *
 *     sum(m, n) = for each 32 elements of K, in order: + (the even ones, a fused chain from 0, + the odd ones, likewise)
 *
 * A chunk of K of a block of weights is packed once for all rows, with rows and pairs of K exchanged as the instruction wants its second
 * operand; the rows of input are packed tile by tile as they are.
 */
#include "cpu/amx.h"
#include "gemm_cpu.h"
#include "gemm_turn.h"

enum { SIDE  = AMX_ROWS,
       STEP  = 32,                              /* elements of K in a tile */
       CHUNK = LINEAR_STEP_BYTES / 2 };

/* `rows` rows of n elements as tiles: those of 16 rows one behind the other, zeros behind n. The last row fills up a tile. */
SGK_INLINE void pack(bool exchange, char *to, const char *from, int64_t from_bytes, int64_t rows, int64_t n)
{
    for (int64_t r = 0; r < rows; r += SIDE)
        for (int64_t k = 0; k < n; k += STEP, to += AMX_TILE_BYTES) {
            const __mmask32 there = n - k >= STEP ? ~0u : (1u << (n - k)) - 1;
            __m512i         x[SIDE];
#pragma GCC unroll 16
            for (int i = 0; i < SIDE; ++i) x[i] = _mm512_maskz_loadu_epi16(there, from + least(r + i, rows - 1) * from_bytes + k * 2);
            if (exchange) turn16(x);
#pragma GCC unroll 16
            for (int i = 0; i < SIDE; ++i) _mm512_storeu_si512(to + i * AMX_ROW_BYTES, x[i]);
        }
}

/* 32 x 32 sums += two times `steps` tiles of rows, two times as many of columns. */
static __attribute__((noinline)) void multiply(int64_t steps, const char *x0, const char *x1, const char *w0, const char *w1, float *sums)
{
    const int64_t bytes = LINEAR_BLOCK * 4;
    float *const  below = sums + SIDE * LINEAR_BLOCK;
    amx_loads_follow();
    amx_load(0, sums, bytes);
    amx_load(1, sums + SIDE, bytes);
    amx_load(2, below, bytes);
    amx_load(3, below + SIDE, bytes);
    for (int64_t i = 0; i < steps * AMX_TILE_BYTES; i += AMX_TILE_BYTES) {
        amx_load(4, x0 + i, AMX_ROW_BYTES);
        amx_load(6, w0 + i, AMX_ROW_BYTES);
        amx_dot_bf16(0, 4, 6);
        amx_load(7, w1 + i, AMX_ROW_BYTES);
        amx_dot_bf16(1, 4, 7);
        amx_load(5, x1 + i, AMX_ROW_BYTES);
        amx_dot_bf16(2, 5, 6);
        amx_dot_bf16(3, 5, 7);
    }
    amx_store(0, sums, bytes);
    amx_store(1, sums + SIDE, bytes);
    amx_store(2, below, bytes);
    amx_store(3, below + SIDE, bytes);
}

static void block(const struct linear_args *a, int64_t m, int64_t rows, int64_t n, int64_t columns, char *scratch)
{
    const int64_t x_bytes = a->input_stride * 2, w_bytes = a->weight_stride * 2;
    char *const   w    = scratch;                                                            /* [LINEAR_BLOCK / 16][steps] tiles */
    char *const   x    = w + LINEAR_BLOCK * LINEAR_STEP_BYTES;                               /* [2][steps] tiles */
    float *const  sums = (float *)(void *)(x + LINEAR_GROUP_ROWS * LINEAR_STEP_BYTES);       /* [rows][LINEAR_BLOCK] */

    memset(sums, 0, (size_t)(rows + 2 * SIDE - 1) / (2 * SIDE) * (2 * SIDE) * LINEAR_BLOCK * sizeof *sums);
    for (int64_t k = 0; k < a->depth; k += CHUNK) {
        const int64_t n_k = least(CHUNK, a->depth - k), steps = (n_k + STEP - 1) / STEP, row = steps * AMX_TILE_BYTES;
        pack(true, w, (const char *)a->weight + n * w_bytes + k * 2, w_bytes, columns, n_k);
        for (int64_t r = 0; r < rows; r += 2 * SIDE) {
            const int64_t some = least(2 * SIDE, rows - r);
            pack(false, x, (const char *)a->input + (m + r) * x_bytes + k * 2, x_bytes, some, n_k);
            for (int64_t c = 0; c < columns; c += 2 * SIDE) {                                /* beyond the last tile: that one again */
                const char *const from = w + c / SIDE * row;
                multiply(steps, x, some > SIDE ? x + row : x, from, columns - c > SIDE ? from + row : from, sums + r * LINEAR_BLOCK + c);
            }
        }
    }
    finish(a, m, rows, n, columns, sums);
}

void SGK_CPU_FN(linear)(const void *args, int64_t begin, int64_t end)
{
    amx_begin();
    blocks_of_parts(args, begin, end, block);
    amx_end();
}
