/*
 * out = input weight^T on the CPU. Rows of both operands run along K, so that lanes run along K as well: a tile of up to
 * TILE_ROWS x 4 outputs keeps one vector of partial sums for each output, and nothing has to be transposed.
 *
 *     sum(m, n) = the sum over chunks of K, in order, of
 *                     the sum over lanes (a fixed tree) of
 *                         the sum over steps of the chunk, in order, of input[m, k] * weight[n, k]
 *
 * This order is the same for every tile height, for packed and unpacked operands, and for every cut into parts: an output's bits
 * depend on its row, its column of weights and the CPU level alone.
 *
 * Few rows: the weights stream through once, straight from memory; very few, where lanes are wide: one row of weights after the other.
 * Many rows: a block of weights is packed as f32 (as bf16 where the CPU multiplies that), a chunk of K at a time, so that it stays in the
 * second-level cache for all rows. Rows of input are packed only where their format changes. Many rows of bf16, where the CPU multiplies
 * pairs of it, are done by gemm_packed_cpu.c.
 */
#include "gemm_cpu.h"

#if defined(__AVX512BF16__)
enum { BF16_PAIRS = 1 };            /* VDPBF16PS: two products a lane */
#else
enum { BF16_PAIRS = 0 };
#endif
enum { TILE_ROWS = VF == 8 ? 3 : 6 };                           /* AVX2 has 16 registers, the others 32 */
enum { TILE_COLUMNS       = 4,
       GROUP_ROWS         = 24,                                      /* a multiple of TILE_ROWS */
       GROUP_COLUMNS      = 8,
       AHEAD_BYTES        = 1024,
       STREAM_AHEAD_BYTES = 8192,
       STREAM_ROWS        = 4,
       STREAM_ROWS_F32    = 2 };                                     /* rows of input; with four the tiles read weights faster, 43 GB/s beside 32 */

/* How format t is kept when packed, and the elements of a step and of a chunk. */
SGK_INLINE sgk_dtype packed(sgk_dtype t) { return t == SGK_BF16 && BF16_PAIRS ? SGK_BF16 : SGK_F32; }
SGK_INLINE int64_t step_of(sgk_dtype t) { return packed(t) == SGK_BF16 ? 2 * VF : VF; }
SGK_INLINE int64_t chunk_of(sgk_dtype t) { return LINEAR_STEP_BYTES / (packed(t) == SGK_BF16 ? 2 : 4); }
SGK_INLINE int64_t size_of(sgk_dtype t) { return t == SGK_F32 ? 4 : 2; }

/* One step at p[k]: f32 lanes, or pairs of bf16 in the lanes of a vf. */
SGK_INLINE vf load_step(sgk_dtype t, const void *p, int64_t k)
{
#if defined(__AVX512BF16__)
    if (t == SGK_BF16) return _mm512_loadu_ps((const uint16_t *)p + k);
#endif
    return vf_load(t, p, k);
}

/* The first n elements of a step; zeros behind them. */
SGK_INLINE vf load_step_part(sgk_dtype t, const void *p, int64_t k, int64_t n)
{
#if defined(__AVX512F__)
    if (t == SGK_F32) return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), (const float *)p + k);
#endif
#if defined(__AVX512BF16__)
    if (t == SGK_BF16) return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1u << n) - 1, (const uint16_t *)p + k));
#endif
    return vf_load_part(t, p, k, n);
}

SGK_INLINE vf multiply_add(sgk_dtype t, vf x, vf w, vf sum)
{
#if defined(__AVX512BF16__)
    if (t == SGK_BF16) return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
#endif
    (void)t;
    return vf_fma(x, w, sum);
}

/* sums[r][0..3] += the products of n <= chunk elements of `rows` rows of x and four rows of w. */
SGK_INLINE void tile(sgk_dtype t, int rows, const char *x, int64_t x_bytes, const char *const w[TILE_COLUMNS], int64_t n, float *sums)
{
    vf sum[TILE_ROWS][TILE_COLUMNS];
    #pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
        #pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; ++c) sum[r][c] = vf_zero();

    const int64_t step = step_of(t), whole = n - n % step;
    for (int64_t k = 0; k < whole; k += step) {
        vf v[TILE_ROWS];
        #pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) v[r] = load_step(t, x + r * x_bytes, k);
        #pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; ++c) {
            const vf u = load_step(t, w[c], k);
            if (rows <= 4) __builtin_prefetch(w[c] + k * size_of(t) + AHEAD_BYTES);      /* few rows wait for memory */
            #pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) sum[r][c] = multiply_add(t, v[r], u, sum[r][c]);
        }
    }
    if (whole < n) {
        vf v[TILE_ROWS];
        #pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) v[r] = load_step_part(t, x + r * x_bytes, whole, n - whole);
        #pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; ++c) {
            const vf u = load_step_part(t, w[c], whole, n - whole);
            #pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) sum[r][c] = multiply_add(t, v[r], u, sum[r][c]);
        }
    }
    #pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        float *to = sums + r * LINEAR_BLOCK;
        v4_store(to, v4_load(to) + vf_sums4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
    }
}

SGK_INLINE void tile_any(sgk_dtype t, int64_t rows, const char *x, int64_t x_bytes, const char *const w[TILE_COLUMNS], int64_t n, float *sums)
{
    switch (rows) {
    case 1: tile(t, 1, x, x_bytes, w, n, sums); break;
    case 2: tile(t, 2, x, x_bytes, w, n, sums); break;
    case 3: tile(t, 3, x, x_bytes, w, n, sums); break;
#if !defined(__AVX2__) || defined(__AVX512F__)
    case 4: tile(t, 4, x, x_bytes, w, n, sums); break;
    case 5: tile(t, 5, x, x_bytes, w, n, sums); break;
    case 6: tile(t, 6, x, x_bytes, w, n, sums); break;
#endif
    }
}

/* One function a format, shared by both ways below. */
static __attribute__((noinline)) void tile_f32(int64_t rows, const char *x, int64_t x_bytes, const char *const w[TILE_COLUMNS], int64_t n, float *sums)
{
    tile_any(SGK_F32, rows, x, x_bytes, w, n, sums);
}
static __attribute__((noinline)) void tile_f16(int64_t rows, const char *x, int64_t x_bytes, const char *const w[TILE_COLUMNS], int64_t n, float *sums)
{
    tile_any(SGK_F16, rows, x, x_bytes, w, n, sums);
}
static __attribute__((noinline)) void tile_bf16(int64_t rows, const char *x, int64_t x_bytes, const char *const w[TILE_COLUMNS], int64_t n, float *sums)
{
    tile_any(SGK_BF16, rows, x, x_bytes, w, n, sums);
}
typedef void tile_fn(int64_t rows, const char *x, int64_t x_bytes, const char *const w[TILE_COLUMNS], int64_t n, float *sums);
SGK_INLINE tile_fn *tile_of(sgk_dtype t) { return t == SGK_F32 ? tile_f32 : t == SGK_F16 ? tile_f16
                                                                                         : tile_bf16; }

#if defined(__AVX512F__)
/* Up to four rows of input by one of weights, which come from memory in the order they lie in; a row's one chain is as fast as that. */
SGK_INLINE void column(sgk_dtype t, int rows, const char *x, int64_t x_bytes, const char *w, int64_t depth, float sums[STREAM_ROWS])
{
    const int64_t size = size_of(t), step = step_of(t), chunk = chunk_of(t);
    v4            sum = { 0 };
    for (int64_t k = 0; k < depth; k += chunk) {
        const int64_t end = least(k + chunk, depth), whole = end - (end - k) % step;
        vf            v[STREAM_ROWS] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() };
        for (int64_t i = k; i < whole; i += step) {
            const vf u = load_step(t, w, i);
            __builtin_prefetch(w + i * size + STREAM_AHEAD_BYTES);
            if (rows == 4) __builtin_prefetch(w + i * size + STREAM_AHEAD_BYTES / 2);     /* what four rows leave no time for is dropped: once more */
            #pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) v[r] = multiply_add(t, load_step(t, x + r * x_bytes, i), u, v[r]);
        }
        if (whole < end) {
            const vf u = load_step_part(t, w, whole, end - whole);
            #pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) v[r] = multiply_add(t, load_step_part(t, x + r * x_bytes, whole, end - whole), u, v[r]);
        }
        sum += vf_sums4(v[0], v[1], v[2], v[3]);
    }
    v4_store(sums, sum);
}

SGK_INLINE void stream(sgk_dtype t, int rows, const struct linear_args *a, int64_t first, int64_t last)
{
    const int64_t w_bytes = a->weight_stride * size_of(t), x_bytes = a->input_stride * size_of(t);
    for (int64_t n = first; n < last; n += LINEAR_BLOCK) {
        const int64_t columns                          = least(LINEAR_BLOCK, last - n);
        float         sums[STREAM_ROWS * LINEAR_BLOCK] = { 0 };
        for (int64_t c = 0; c < columns; ++c) {
            float all[STREAM_ROWS];
            column(t, rows, a->input, x_bytes, (const char *)a->weight + (n + c) * w_bytes, a->depth, all);
            for (int r = 0; r < rows; ++r) sums[r * LINEAR_BLOCK + c] = all[r];
        }
        finish(a, 0, rows, n, columns, sums);
    }
}

static void stream_rows(const struct linear_args *a, int64_t first, int64_t last)
{
#define ROWS(n) \
case n: \
    if (n <= STREAM_ROWS_F32 && a->dtype == SGK_F32) stream(SGK_F32, n, a, first, last); \
    else if (a->dtype == SGK_F16) stream(SGK_F16, n, a, first, last); \
    else stream(SGK_BF16, n, a, first, last); \
    break
    switch (a->rows) {
        ROWS(1);
        ROWS(2);
        ROWS(3);
        ROWS(4);
    }
#undef ROWS
}
#endif

/* Columns [first, last) of all rows, every operand read where it lies. */
static void few_rows(const struct linear_args *a, int64_t first, int64_t last)
{
    const int64_t  size = size_of(a->dtype), chunk = chunk_of(a->dtype), x_bytes = a->input_stride * size, w_bytes = a->weight_stride * size;
    tile_fn *const run = tile_of(a->dtype);
    float          sums[LINEAR_FEW_ROWS * LINEAR_BLOCK];
    for (int64_t n = first; n < last; n += LINEAR_BLOCK) {
        const int64_t columns = least(LINEAR_BLOCK, last - n);
        memset(sums, 0, (size_t)a->rows * LINEAR_BLOCK * sizeof *sums);
        for (int64_t c = 0; c < columns; c += TILE_COLUMNS) {
            const char *w[TILE_COLUMNS];                        /* beyond the last column: that one again, and nobody looks at the sum */
            for (int64_t i = 0; i < TILE_COLUMNS; ++i) w[i] = (const char *)a->weight + (n + least(c + i, columns - 1)) * w_bytes;
            for (int64_t m = 0; m < a->rows; m += TILE_ROWS)
                for (int64_t k = 0; k < a->depth; k += chunk) {
                    const char *const piece[TILE_COLUMNS] = { w[0] + k * size, w[1] + k * size, w[2] + k * size, w[3] + k * size };
                    run(least(TILE_ROWS, a->rows - m), (const char *)a->input + m * x_bytes + k * size, x_bytes, piece, least(chunk, a->depth - k),
                        sums + m * LINEAR_BLOCK + c);
                }
        }
        finish(a, 0, a->rows, n, columns, sums);
    }
}

/* n elements of a row as the tiles take them, with zeros up to the end of the last step. */
SGK_INLINE void pack_row_of(sgk_dtype t, char *to, const char *from, int64_t n)
{
    const int64_t step = step_of(t), whole = n - n % step, bytes = size_of(packed(t));
    for (int64_t k = 0; k < whole; k += step) vf_store_f32((float *)(to + k * bytes), load_step(t, from, k));
    if (whole < n) vf_store_f32((float *)(to + whole * bytes), load_step_part(t, from, whole, n - whole));
}

static void pack_rows(sgk_dtype t, char *to, const char *from, int64_t from_bytes, int64_t rows, int64_t n)
{
    for (int64_t r = 0; r < rows; ++r, to += LINEAR_STEP_BYTES, from += from_bytes) {
        if (t == SGK_F32) pack_row_of(SGK_F32, to, from, n);
        else if (t == SGK_F16) pack_row_of(SGK_F16, to, from, n);
        else pack_row_of(SGK_BF16, to, from, n);
    }
}

/* Into the second-level cache. Pieces of rows are short and far apart: the processor would not guess the next one. */
SGK_INLINE void prefetch(const char *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

static void block(const struct linear_args *a, int64_t m, int64_t rows, int64_t n, int64_t columns, char *scratch)
{
    const int64_t  size = size_of(a->dtype), chunk = chunk_of(a->dtype);
    const int64_t  x_bytes = a->input_stride * size, w_bytes = a->weight_stride * size;
    tile_fn *const run  = tile_of(packed(a->dtype));
    char *const    w    = scratch;                                                           /* [LINEAR_BLOCK][LINEAR_STEP_BYTES] */
    char *const    x    = w + LINEAR_BLOCK * LINEAR_STEP_BYTES;                              /* [LINEAR_GROUP_ROWS][LINEAR_STEP_BYTES] */
    float *const   sums = (float *)(void *)(x + LINEAR_GROUP_ROWS * LINEAR_STEP_BYTES);     /* [rows][LINEAR_BLOCK] */

    memset(sums, 0, (size_t)rows * LINEAR_BLOCK * sizeof *sums);
    for (int64_t k = 0; k < a->depth; k += chunk) {
        const int64_t n_k = least(chunk, a->depth - k);
        pack_rows(a->dtype, w, (const char *)a->weight + n * w_bytes + k * size, w_bytes, columns, n_k);
        for (int64_t r = 0; r < rows; r += GROUP_ROWS) {
            const int64_t some = least(GROUP_ROWS, rows - r), more = least(GROUP_ROWS, rows - r - some);
            const char   *rows_at = (const char *)a->input + (m + r) * x_bytes + k * size;
            int64_t       apart   = x_bytes;
            if (packed(a->dtype) != a->dtype) {
                pack_rows(a->dtype, x, rows_at, x_bytes, some, n_k);
                rows_at = x, apart = LINEAR_STEP_BYTES;
            }
            for (int64_t g = 0; g < columns; g += GROUP_COLUMNS) {          /* a group of weights stays in the first-level cache */
                for (int64_t i = more * g / LINEAR_BLOCK; i < more * (g + GROUP_COLUMNS) / LINEAR_BLOCK; ++i)
                    prefetch((const char *)a->input + (m + r + some + i) * x_bytes + k * size, n_k * size);
                for (int64_t i = 0; i < some; i += TILE_ROWS)
                    for (int64_t c = g; c < least(g + GROUP_COLUMNS, columns); c += TILE_COLUMNS) {
                        const char *piece[TILE_COLUMNS];
                        for (int64_t j = 0; j < TILE_COLUMNS; ++j) piece[j] = w + least(c + j, columns - 1) * LINEAR_STEP_BYTES;
                        run(least(TILE_ROWS, some - i), rows_at + i * apart, apart, piece, n_k, sums + (r + i) * LINEAR_BLOCK + c);
                    }
            }
        }
    }
    finish(a, m, rows, n, columns, sums);
}

void SGK_CPU_FN(linear)(const void *args, int64_t begin, int64_t end)
{
    const struct linear_cpu_args *cpu = args;
    const struct linear_args     *a   = &cpu->a;
    if (!cpu->scratch) {
        const int64_t tiles = (a->columns + VF - 1) / VF, first = share(tiles, begin, cpu->parts) * VF, last = least(share(tiles, end, cpu->parts) * VF, a->columns);
#if defined(__AVX512F__)
        if (a->rows <= (a->dtype == SGK_F32 ? STREAM_ROWS_F32 : STREAM_ROWS)) {
            stream_rows(a, first, last);
            return;
        }
#endif
        few_rows(a, first, last);
        return;
    }
    blocks_of_parts(cpu, begin, end, block);
}
