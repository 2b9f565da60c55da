/*
 * Attention in one pass over the keys, 64 at a time, with a running maximum and sum for each row (a row is a query under one of
 * the group's heads, so keys and values are read once for the group). Scores are in powers of two.
 *
 * Few rows (decode) are bound by memory: keys and values are used where they lie, scores by dot products, all heads of some keys before
 * the next keys, so that memory is read in the order of its addresses. Every line is asked for some kilobytes before it is used, evenly
 * between the products: neither so late that it is waited for, nor so many at once that they would push each other out of the first-level cache.
 * Products are functions whose number of rows is a constant. Where the processor multiplies pairs of bf16 (AVX-512 BF16), both are such pairs,
 * and codes of e4m3 become bf16 on the way.
 *
 * Many rows (prefill) are bound by arithmetic: scores are made transposed, S' = K Q', so that the lanes of a vector are rows: no sums
 * across lanes, and both products are the same small matrix kernel. In f32 each block of keys is widened once. In pairs of bf16 a lane of q, p
 * and v holds a pair of neighbours in the sum, and keys are used where they lie.
 *
 * With pairs p is rounded to bf16.
 */
#include <math.h>
#include "attention_cpu.h"
#include "cpu/e4m3.h"
#include "cpu/simd.h"

enum { KEYS = ATTENTION_KEYS,
       TILE_VECS = VF == 8 ? 2 : 4,         /* AVX2 has 16 registers, the others 32 */
       AHEAD       = 16384,             /* decode: bytes between what is asked for and what is used, */
       FAR         = 32,                /* and rows until one whose page is looked up meanwhile; */
       AGAIN       = 4,                 /* pieces between a request and the same once more, */
       AGAIN_ROWS  = 4,                 /* under up to so many rows, */
       AGAIN_BYTES = 256 };             /* with so many bytes of a key and more: others are bound by products */

#define LOG2_E 1.44269504f
#define LN_2   0.693147181f

typedef struct {                    /* one block of rows under one key head, over one span of keys */
    const struct attention_args     *a;
    const struct attention_sequence *s;
    int32_t                          n, kv_head, row, rows;  /* of the sequence: rows [row, row + rows) */
    int32_t                          begin, end;             /* keys that any of them sees, within the span */
    int32_t                          dim, dim_v;             /* padded: columns of q, and of out */
    bool                             few;
    float                            scale;                  /* what products become scores by, powers of two unless they are capped */
    float                           *q;                      /* few: [rows][dim]; many: transposed, [dim, then those of q_v][lanes] */
    float                           *out;                    /* [rows][dim_v] */
    float                           *scores;                 /* few: [rows][KEYS]; many: [KEYS][lanes] */
    float                           *most, *sum, *alpha;     /* of a row so far: the largest score, the sum of 2^(score - most); what the last block's rise scales by */
    float                           *key, *value;            /* many: the block in f32, [KEYS][dim] and [KEYS][dim_v] */
    int64_t                          lanes;                  /* rows rounded up to 16 */
} piece;

typedef struct { const void *key[KEYS], *value[KEYS]; } places;        /* of a block of keys */

SGK_INLINE int64_t size_of(sgk_dtype t) { return t == SGK_F32 ? 4 : t == SGK_E4M3 ? 1
                                                                                  : 2; }

/* ---- C[rows][vecs] (+)= A[rows][depth] * B[depth][vecs], B's rows of format t wherever they are ------------------------ */

SGK_INLINE void tile(sgk_dtype t, const int rows, const int vecs, float *c, int64_t c_stride, const float *a, int64_t a_row, int64_t a_column,
                     const void *const *b, int64_t column, int64_t depth, bool add)
{
    vf total[16];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) total[r * vecs + v] = add ? vf_load_f32(c + r * c_stride + v * VF) : vf_zero();
    for (int64_t k = 0; k < depth; ++k) {
        vf x[8];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) x[v] = vf_load(t, b[k], column + v * VF);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const vf y = vf_set(a[r * a_row + k * a_column]);
#pragma GCC unroll 8
            for (int v = 0; v < vecs; ++v) total[r * vecs + v] = vf_fma(x[v], y, total[r * vecs + v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; ++v) vf_store_f32(c + r * c_stride + v * VF, total[r * vecs + v]);
}

SGK_INLINE void tiles(sgk_dtype t, const int vecs, float *c, int64_t c_stride, int64_t rows, const float *a, int64_t a_row, int64_t a_column,
                      const void *const *b, int64_t column, int64_t depth, bool add)
{
    for (; rows >= 4; rows -= 4, a += 4 * a_row, c += 4 * c_stride) tile(t, 4, vecs, c, c_stride, a, a_row, a_column, b, column, depth, add);
    if (rows & 2) {
        tile(t, 2, vecs, c, c_stride, a, a_row, a_column, b, column, depth, add);
        a += 2 * a_row, c += 2 * c_stride;
    }
    if (rows & 1) tile(t, 1, vecs, c, c_stride, a, a_row, a_column, b, column, depth, add);
}

/* `columns` is a multiple of VF; B's columns begin at `offset`. */
SGK_INLINE void multiply(sgk_dtype t, float *c, int64_t c_stride, int64_t rows, int64_t columns, const float *a, int64_t a_row, int64_t a_column,
                         const void *const *b, int64_t offset, int64_t depth, bool add)
{
    int64_t column = 0;
    if (rows <= 2)                                                      /* registers for twice the width: whole rows of values at a time */
        for (; column + 2 * TILE_VECS * VF <= columns; column += 2 * TILE_VECS * VF) {
            if (rows == 2) tile(t, 2, 2 * TILE_VECS, c + column, c_stride, a, a_row, a_column, b, offset + column, depth, add);
            else tile(t, 1, 2 * TILE_VECS, c + column, c_stride, a, a_row, a_column, b, offset + column, depth, add);
        }
    for (; column + TILE_VECS * VF <= columns; column += TILE_VECS * VF) tiles(t, TILE_VECS, c + column, c_stride, rows, a, a_row, a_column, b, offset + column, depth, add);
    for (; column < columns; column += VF) tiles(t, 1, c + column, c_stride, rows, a, a_row, a_column, b, offset + column, depth, add);
}

/* ---- the same in pairs of bf16 ------------------------------------------------------------------------------------------ */

#if defined(__AVX512BF16__)
/* C[rows][vecs * 16] (+)= A B in pairs: pair k of row r is the 32 bits at a[r] + k * a_pair, those of B are at b[k * b_stride]. */
SGK_INLINE void pair_tile(const int rows, const int vecs, float *c, int64_t c_stride, const void *const *a, int64_t a_pair, const uint32_t *b, int64_t b_stride,
                          int64_t pairs, bool add)
{
    __m512  total[24];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) total[r * vecs + v] = add ? _mm512_loadu_ps(c + r * c_stride + v * 16) : _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; ++k) {
        __m512bh x[4];
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) x[v] = (__m512bh)_mm512_loadu_si512(b + k * b_stride + v * 16);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            int pair;
            memcpy(&pair, (const char *)a[r] + k * a_pair, 4);
            const __m512bh y = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; ++v) total[r * vecs + v] = _mm512_dpbf16_ps(total[r * vecs + v], y, x[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; ++v) _mm512_storeu_ps(c + r * c_stride + v * 16, total[r * vecs + v]);
}

SGK_INLINE void pair_tiles(const int vecs, float *c, int64_t c_stride, int64_t rows, const void *const *a, int64_t a_pair, const uint32_t *b, int64_t b_stride, int64_t pairs, bool add)
{
    for (; rows >= 6; rows -= 6, a += 6, c += 6 * c_stride) pair_tile(6, vecs, c, c_stride, a, a_pair, b, b_stride, pairs, add);
    if (rows >= 4) {
        pair_tile(4, vecs, c, c_stride, a, a_pair, b, b_stride, pairs, add);
        rows -= 4, a += 4, c += 4 * c_stride;
    }
    for (; rows > 0; --rows, ++a, c += c_stride) pair_tile(1, vecs, c, c_stride, a, a_pair, b, b_stride, pairs, add);
}

/* `columns` is a multiple of 16. */
static void multiply_pairs(float *c, int64_t c_stride, int64_t rows, int64_t columns, const void *const *a, int64_t a_pair, const uint32_t *b, int64_t b_stride, int64_t pairs, bool add)
{
    for (; columns >= 64; columns -= 64, c += 64, b += 64) pair_tiles(4, c, c_stride, rows, a, a_pair, b, b_stride, pairs, add);
    if (columns & 32) {
        pair_tiles(2, c, c_stride, rows, a, a_pair, b, b_stride, pairs, add);
        c += 32, b += 32;
    }
    if (columns & 16) pair_tiles(1, c, c_stride, rows, a, a_pair, b, b_stride, pairs, add);
}

/* Elements of two rows as pairs: to[i] = (x[i], y[i]) for `dim` columns; those up to the next 16 are zeros. */
SGK_INLINE void interleave(uint32_t *to, const uint16_t *x, const uint16_t *y, int64_t dim)
{
    const __m512i low  = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t d = 0; d < dim; d += 32) {
        const __mmask32 there = dim - d >= 32 ? ~0u : (1u << (dim - d)) - 1;
        const __m512i   u = _mm512_maskz_loadu_epi16(there, x + d), v = y ? _mm512_maskz_loadu_epi16(there, y + d) : _mm512_setzero_si512();
        _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(u, low, v));
        if (dim - d > 16) _mm512_storeu_si512(to + d + 16, _mm512_permutex2var_epi16(u, high, v));
    }
}

/* Two vectors of scores' powers as pairs, rounded. */
SGK_INLINE __m512i pairs_of(__m512 x, __m512 y)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(y)), 16));
}
#endif

/* ---- scores ------------------------------------------------------------------------------------------------------------ */

/* cap * tanh(x / cap) in powers of two. */
SGK_INLINE vf soft_capped(vf x, float cap)
{
    const vf e = vf_exp2(vf_mul(x, vf_set(2 * LOG2_E / cap)));
    return vf_mul(vf_set(cap * LOG2_E), vf_sub(vf_set(1), vf_div(vf_set(2), vf_add(vf_set(1), e))));
}

/* ---- few rows: scores by dot products ------------------------------------------------------------------------------- */

#if defined(__AVX512BF16__)
#define PAIRS(t) ((t) == SGK_BF16 || (t) == SGK_E4M3)
#else
#define PAIRS(t) ((void)(t), false)
#endif

/* As many rows as there are registers for their sums with four keys; with AVX2 twice as many where keys would have to be widened again. */
#define DOT_ROWS(t) (VF == 16 ? 7 : VF == 4 || (t) == SGK_E4M3 ? 4 \
                                                               : 2)

/* Vector i of q's row r is at q[(i * rows + r) * VF]: f32, or where pairs are multiplied bf16, codes in the order of e4m3_widen(). */
typedef struct {
    int64_t     rows, dim, dim_v;
    int64_t     k_step, v_step;                     /* from head to head in elements */
    float       scale[ATTENTION_ROWS];              /* of each head */
    bool        once;                               /* no cache keeps keys and values */
    bool        twice;                          /* every line is asked for twice: a processor that has no room for a request drops it */
    const char *again;                          /* what is asked for once more during the next products, or NULL */
#if defined(__AVX512BF16__)
    e4m3_tables e4m3;
#endif
} few_rows;

/* Asks for lines of the `bytes` bytes at soon + offset, and at again + offset unless that is NULL: the i-th part of n; bytes, i and n are constants. Requests right behind each other get in each other's way. */
SGK_INLINE void ask(const bool once, const char *soon, const char *again, int64_t offset, const int64_t bytes, const int i, const int n)
{
    const int64_t lines = (bytes + 63) / 64;
    if (!soon || (bytes < 64 && offset % 64)) return;
    for (int64_t line = lines * i / n; line < lines * (i + 1) / n; ++line) {
        if (once) __builtin_prefetch(soon + offset + 64 * line, 0, 0);
        else __builtin_prefetch(soon + offset + 64 * line);
        if (again) __builtin_prefetch(again + offset + 64 * line, 0, 0);
    }
}

/* The same, all of them and not between anything. */
SGK_INLINE void ask_now(const bool once, const char *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) ask(once, from + i, NULL, 0, 64, 0, 1);
}

/* Scores of `rows` rows, a constant, with four keys whose elements begin at `offset`; meanwhile as many bytes from `soon` on are asked for. */
SGK_INLINE void dots(sgk_dtype t, const int rows, const bool once, float *scores, const float *q, const few_rows *f, const void *const *key, int64_t offset, const char *soon, const char *again, float scale)
{
    vf            total[DOT_ROWS(SGK_E4M3)][4];
    const int64_t step = f->rows * VF, dim = f->dim;
#pragma GCC unroll 7
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) total[r][j] = vf_zero();
#if defined(__AVX512BF16__)
    if (t == SGK_BF16) {
        const uint16_t *k[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) k[j] = (const uint16_t *)key[j] + offset;
        for (int64_t d = 0; d < dim; d += 32, q += step) {
            __m512bh x[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                if (rows < 4) ask(once, soon, again, 8 * d, 256, j, 4);
                x[j] = (__m512bh)(dim - d >= 32 ? _mm512_loadu_si512(k[j] + d) : _mm512_zextsi256_si512(_mm256_loadu_si256((const void *)(k[j] + d))));
            }
#pragma GCC unroll 7
            for (int r = 0; r < rows; ++r) {
                const __m512bh y = (__m512bh)_mm512_loadu_ps(q + r * VF);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) total[r][j] = _mm512_dpbf16_ps(total[r][j], y, x[j]);
                if (rows >= 4) ask(once, soon, again, 8 * d, 256, r, rows);
            }
        }
    } else if (t == SGK_E4M3) {
        for (int64_t d = 0; d < dim; d += 64, q += 2 * step) {
            const __mmask64 there = dim - d >= 64 ? ~0ull : (1ull << (dim - d)) - 1;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                __m512i x[2];
                e4m3_widen(&f->e4m3, _mm512_maskz_loadu_epi8(there, (const uint8_t *)key[j] + offset + d), x);
#pragma GCC unroll 7
                for (int r = 0; r < rows; ++r) {
                    total[r][j] = _mm512_dpbf16_ps(total[r][j], (__m512bh)_mm512_loadu_ps(q + r * VF), (__m512bh)x[0]);
                    total[r][j] = _mm512_dpbf16_ps(total[r][j], (__m512bh)_mm512_loadu_ps(q + step + r * VF), (__m512bh)x[1]);
                }
                ask(once, soon, again, 4 * d, 256, j, 4);
            }
        }
    } else
#endif
        for (int64_t d = 0; d < dim; d += VF, q += step) {
            vf k[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                if (rows < 4) ask(once, soon, again, 4 * size_of(t) * d, 4 * size_of(t) * VF, j, 4);
                k[j] = vf_load(t, key[j], offset + d);
            }
#pragma GCC unroll 7
            for (int r = 0; r < rows; ++r) {
                const vf x = vf_load_f32(q + r * VF);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) total[r][j] = vf_fma(x, k[j], total[r][j]);
                if (rows >= 4) ask(once, soon, again, 4 * size_of(t) * d, 4 * size_of(t) * VF, r, rows);
            }
        }
#pragma GCC unroll 7
    for (int r = 0; r < rows; ++r) v4_store(scores + r * KEYS, scale * vf_sums4(total[r][0], total[r][1], total[r][2], total[r][3]));
}

/* The same under heads [h, end). */
SGK_INLINE void dots_of_heads(sgk_dtype t, const int rows, const bool once, float *scores, const float *q, const few_rows *f, const void *const *key, const char *const *soon, int64_t h, int64_t end)
{
    for (; h < end; ++h, scores += f->rows * KEYS, q += f->rows * f->dim) dots(t, rows, once, scores, q, f, key, h * f->k_step, soon[h], NULL, f->scale[h]);
}

/* One function for each format and number of rows, so that each has the registers to itself. With e4m3, where time goes to products, it takes all heads of four keys; the others take
 * one: where memory is waited for, a processor that has the next head's loads in view as well waits longer. */
typedef void dots_fn(float *scores, const float *q, const few_rows *f, const void *const *key, int64_t offset, const char *soon, float scale);
typedef void dots_of_heads_fn(float *scores, const float *q, const few_rows *f, const void *const *key, const char *const *soon, int64_t h, int64_t end);
/* clang-format off */
#define DOTS(name, t, rows) \
    static __attribute__((noinline)) void name##_##rows(float *scores, const float *q, const few_rows *f, const void *const *key, int64_t offset, const char *soon, float scale) \
    { \
        dots(t, rows, f->once, scores, q, f, key, offset, soon, NULL, scale); \
    }
#define DOTS_AGAIN(name, t, rows) \
    static __attribute__((noinline)) void name##_##rows(float *scores, const float *q, const few_rows *f, const void *const *key, int64_t offset, const char *soon, float scale) \
    { \
        dots(t, rows, true, scores, q, f, key, offset, soon, f->again, scale); \
    }
#define DOTS_OF_HEADS(name, t, rows) \
    static __attribute__((noinline)) void name##_##rows(float *scores, const float *q, const few_rows *f, const void *const *key, const char *const *soon, int64_t h, int64_t end) \
    { \
        if (f->once) dots_of_heads(t, rows, true, scores, q, f, key, soon, h, end); \
        else dots_of_heads(t, rows, false, scores, q, f, key, soon, h, end); \
    }
#define DOTS_TO_4(make, name, t) make(name, t, 1) make(name, t, 2) make(name, t, 3) make(name, t, 4)
#define DOTS_TO_7(make, name, t) DOTS_TO_4(make, name, t) make(name, t, 5) make(name, t, 6) make(name, t, 7)
#if defined(__AVX512F__)
#define DOTS_ALL(make, type, name, t) \
    DOTS_TO_7(make, name, t) \
    static type *const name[] = { name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7 };
#else
#define DOTS_ALL(make, type, name, t) \
    DOTS_TO_4(make, name, t) \
    static type *const name[] = { name##_1, name##_2, name##_3, name##_4 };
#endif
#define DOTS_ALL_AGAIN(name, t) \
    DOTS_TO_4(DOTS_AGAIN, name, t) \
    static dots_fn *const name[AGAIN_ROWS] = { name##_1, name##_2, name##_3, name##_4 };
/* clang-format on */
DOTS_ALL(DOTS, dots_fn, dots_f32, SGK_F32)
DOTS_ALL(DOTS, dots_fn, dots_f16, SGK_F16)
DOTS_ALL(DOTS, dots_fn, dots_bf16, SGK_BF16)
DOTS_ALL(DOTS_OF_HEADS, dots_of_heads_fn, dots_e4m3, SGK_E4M3)
DOTS_ALL_AGAIN(dots_f32_again, SGK_F32)
DOTS_ALL_AGAIN(dots_f16_again, SGK_F16)
DOTS_ALL_AGAIN(dots_bf16_again, SGK_BF16)

static const char *const nothing[ATTENTION_ROWS];               /* in place of what is asked for */

/* As many rows as the next function takes. */
SGK_INLINE int64_t dot_rows(sgk_dtype t, int64_t left)
{
    return left <= DOT_ROWS(t) ? left : DOT_ROWS(t) < 4 ? DOT_ROWS(t)
                                                        : 4;
}

/* Scores of four keys with all rows. */
SGK_INLINE void score_few(sgk_dtype t, const few_rows *f, float *scores, const float *q, const void *const *key, int64_t offset, const char *soon, float scale)
{
    dots_fn *const *with = t == SGK_F32 ? dots_f32 : t == SGK_F16 ? dots_f16
                                                                  : dots_bf16;
    if (f->again) with = t == SGK_F32 ? dots_f32_again : t == SGK_F16 ? dots_f16_again
                                                                      : dots_bf16_again;
    for (int64_t left = f->rows, rows; left > 0; left -= rows, scores += rows * KEYS, q += rows * VF, soon = NULL) {
        rows = dot_rows(t, left);
        with[rows - 1](scores, q, f, key, offset, soon, scale);
    }
}

/* The same under all heads, of e4m3. */
SGK_INLINE void score_few_e4m3(const few_rows *f, float *scores, const float *q, const void *const *key, int64_t heads, const char *const *soon)
{
    for (int64_t left = f->rows, rows; left > 0; left -= rows, scores += rows * KEYS, q += rows * VF, soon = nothing) {
        rows = dot_rows(SGK_E4M3, left);
        dots_e4m3[rows - 1](scores, q, f, key, soon, 0, heads);
    }
}

/* Rows that are read in turn, in pieces of one head or of four that lie side by side; when they have been asked for, `more` follow. */
typedef struct {
    const void *const *row;
    int32_t            rows, pieces, heads;     /* pieces of a row, heads of a piece */
    int64_t            step, bytes;             /* from piece to piece, of each */
} rows_ahead;

typedef struct {
    rows_ahead  now, more;
    int32_t     piece;                           /* the next one */
    const char *given[AGAIN];                   /* the last ones, in turn */
    uint32_t    turn;
} ahead;

SGK_INLINE rows_ahead rows_of(const void *const *row, int32_t rows, int32_t heads, int64_t step, int64_t bytes)
{
    if (step == bytes && heads % 4 == 0) return (rows_ahead){ row, rows, heads / 4, 4, 4 * bytes, 4 * bytes };
    return (rows_ahead){ row, rows, heads, 1, step, bytes };
}

/* Where the next four heads' begin, to be asked for between products; what does not lie side by side is asked for here, and NULL is returned. */
SGK_INLINE const char *find_pieces(ahead *a, const few_rows *f)
{
    const char *piece[4];
    int64_t     bytes = 0;
    bool        aside = true;
    for (int i = 0, heads = 0; heads < 4; heads += a->now.heads, ++i) {
        if (a->now.rows == 0) {
            if (a->more.rows == 0) return NULL;
            a->now = a->more, a->more.rows = 0;
        }
        if (a->piece == 0) {
            const int32_t beyond = FAR - a->now.rows;
            if (beyond < 0) __builtin_prefetch(a->now.row[FAR]);
            else if (beyond < a->more.rows) __builtin_prefetch(a->more.row[beyond]);
        }
        piece[i] = (const char *)*a->now.row + a->piece * a->now.step;
        bytes    = a->now.bytes;
        aside    = aside && (i == 0 || piece[i] - piece[i - 1] == bytes);
        if (++a->piece == a->now.pieces) a->piece = 0, ++a->now.row, --a->now.rows;
        if (a->now.heads == 4) return piece[i];
    }
    if (aside) return piece[0];
    for (int i = 0; i < 4; ++i) ask_now(f->once, piece[i], bytes);
    return NULL;
}

/* The same, and what was found AGAIN pieces before, to be asked for once more. */
SGK_INLINE const char *next_pieces(ahead *a, few_rows *f)
{
    const char *soon = find_pieces(a, f);
    if (f->twice) f->again = a->given[a->turn % AGAIN], a->given[a->turn++ % AGAIN] = soon;
    return soon;
}

/* Turns scores into 2^(score - most), keeps most, sum and out up to date. Keys [first, first + keys). With pairs, the powers of two
 * neighbours are left in the first half of a row, rounded to bf16. */
SGK_INLINE void soften_few(const piece *p, int32_t first, int32_t keys, const bool pairs)
{
    const vf      least = vf_set(-3.402823466e38f);                          /* instead of -inf, whose difference with itself is no number */
    const int32_t query = p->row / p->a->group;
    int32_t       lo = 0, hi = 0;
    for (int32_t r = 0, i = query, same = 0; r < p->rows; ++r, --same) {
        if (same == 0) {                                                /* the rows of a query see the same keys */
            const struct attention_keys sees = attention_keys_of(p->a, p->s, i);
            lo = attention_between(0, sees.begin - first, keys), hi = attention_between(lo, sees.end - first, keys);
            same = p->a->group - (p->row + r) % p->a->group, ++i;
        }
        float *score = p->scores + r * KEYS;
        if (p->a->softcap != 0)
            for (int32_t j = 0; j < KEYS; j += VF) vf_store_f32(score + j, soft_capped(vf_load_f32(score + j), p->a->softcap));
        for (int32_t j = 0; j < lo; ++j) score[j] = -INFINITY;
        for (int32_t j = hi; j < KEYS; ++j) score[j] = -INFINITY;

        vf most = vf_set(p->most[r]), sum = vf_zero();
        for (int32_t j = 0; j < KEYS; j += VF) most = vf_max(most, vf_load_f32(score + j));
        const float now  = vf_most(most);
        const vf    base = vf_max(vf_set(now), least);
        for (int32_t j = 0; j < KEYS; j += VF) {
            const vf e = vf_exp2(vf_sub(vf_load_f32(score + j), base));
            sum        = vf_add(sum, e);
            vf_store_f32(score + j, e);
        }
        if (p->most[r] != now) {
            const vf alpha = vf_exp2(vf_sub(vf_set(p->most[r]), base));
            for (int64_t d = 0; d < p->dim_v; d += VF) vf_store_f32(p->out + r * p->dim_v + d, vf_mul(alpha, vf_load_f32(p->out + r * p->dim_v + d)));
            vf_store_f32(p->alpha, alpha);
            p->sum[r] *= p->alpha[0];
        }
        p->most[r] = now;
        p->sum[r] += vf_sum(sum);
        if (pairs) {
#if defined(__AVX512BF16__)
            for (int32_t j = 0; j < KEYS; j += 32)
                _mm512_storeu_si512(score + j / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(score + j + 16), _mm512_loadu_ps(score + j)));
#endif
        }
    }
}

#if defined(__AVX512BF16__)
/* The values of keys x and y in 32 columns as pairs. Those of bf16: columns 0 to 3, 8 to 11, 16 to 19 and 24 to 27, then the others. */
SGK_INLINE void value_pairs(sgk_dtype t, const few_rows *f, const char *x, const char *y, __m512i to[2])
{
    if (t == SGK_E4M3) {
        e4m3_pairs(&f->e4m3, _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const void *)x)), _mm256_loadu_si256((const void *)y), 1), to);
    } else {
        const __m512i a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(y);
        to[0] = _mm512_unpacklo_epi16(a, b), to[1] = _mm512_unpackhi_epi16(a, b);
    }
}
#endif

/* Whether values are weighed in pairs too. */
SGK_INLINE bool value_in_pairs(sgk_dtype t, int64_t dim_v) { return PAIRS(t) && dim_v % 32 == 0; }

/* out += p values of four keys in columns [d, end), `vecs` vectors, a constant, at a time. In pairs the rows of two keys lie side by side in the sum. */
SGK_INLINE void weigh_columns(sgk_dtype t, const int rows, const int vecs, const bool pairs, const bool once, float *out, const float *p, const few_rows *f, const char *const *value, const char *soon,
                              const char *again, int64_t d, int64_t end)
{
    const int64_t size = size_of(t), dim_v = f->dim_v;
    (void)pairs;
    for (; d + VF * vecs <= end; d += VF * vecs) {
        vf     total[16];
        float *to = out + d;
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r, to += dim_v)
#pragma GCC unroll 4
            for (int v = 0; v < vecs; ++v) total[r * vecs + v] = vf_load_f32(to + VF * v);
#if defined(__AVX512BF16__)
        if (pairs) {
#pragma GCC unroll 2
            for (int j = 0; j < 4; j += 2) {
                __m512i w[4];
#pragma GCC unroll 2
                for (int v = 0; v < vecs; v += 2) {
                    if (rows < 4) ask(once, soon, again, 4 * size * d, 4 * size * VF * vecs, j + v / 2, 4);
                    value_pairs(t, f, value[j] + (d + 16 * v) * size, value[j + 1] + (d + 16 * v) * size, w + v);
                }
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r) {
                    const __m512bh e = (__m512bh)_mm512_set1_ps(p[r * KEYS + j / 2]);   /* a pair */
#pragma GCC unroll 4
                    for (int v = 0; v < vecs; ++v) total[r * vecs + v] = _mm512_dpbf16_ps(total[r * vecs + v], e, (__m512bh)w[v]);
                    if (rows >= 4) ask(once, soon, again, 4 * size * d, 4 * size * VF * vecs, j / 2 * rows + r, 2 * rows);
                }
            }
        } else
#endif
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                vf w[4];
#pragma GCC unroll 4
                for (int v = 0; v < vecs; ++v) {
                    if (rows < 4) ask(once, soon, again, 4 * size * d, 4 * size * VF * vecs, j * vecs + v, 4 * vecs);
                    w[v] = vf_load(t, value[j], d + VF * v);
                }
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r) {
                    const vf e = vf_set(p[r * KEYS + j]);
#pragma GCC unroll 4
                    for (int v = 0; v < vecs; ++v) total[r * vecs + v] = vf_fma(w[v], e, total[r * vecs + v]);
                    if (rows >= 4) ask(once, soon, again, 4 * size * d, 4 * size * VF * vecs, j * rows + r, 4 * rows);
                }
            }
        to = out + d;
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r, to += dim_v)
#pragma GCC unroll 4
            for (int v = 0; v < vecs; ++v) vf_store_f32(to + VF * v, total[r * vecs + v]);
    }
}

SGK_INLINE void weigh(sgk_dtype t, const int rows, const bool pairs, const bool once, float *out, const float *p, const few_rows *f, const void *const *value, int64_t offset, const char *soon, const char *again)
{
    const char   *row[4];
    const int64_t dim_v = f->dim_v;
    const int     vecs = VF == 8 || rows > 4 ? 2 : 4, rest = pairs ? 2 : 1;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) row[j] = (const char *)value[j] + offset * size_of(t);
    weigh_columns(t, rows, vecs, pairs, once, out, p, f, row, soon, again, 0, dim_v);
    if (dim_v % (VF * vecs)) weigh_columns(t, rows, rest, pairs, once, out, p, f, row, soon, again, dim_v - dim_v % (VF * vecs), dim_v);
}

/* The same under heads [h, end). */
SGK_INLINE void weigh_heads(sgk_dtype t, const int rows, const bool pairs, const bool once, float *out, const float *p, const few_rows *f, const void *const *value, const char *const *soon,
                            int64_t h, int64_t end)
{
    for (; h < end; ++h, out += f->rows * f->dim_v, p += f->rows * KEYS) weigh(t, rows, pairs, once, out, p, f, value, h * f->v_step, soon[h], NULL);
}

typedef void weigh_heads_fn(float *out, const float *p, const few_rows *f, const void *const *value, const char *const *soon, int64_t h, int64_t end);
typedef void weigh_fn(float *out, const float *p, const few_rows *f, const void *const *value, int64_t offset, const char *soon);
/* clang-format off */
#define WEIGH(name, t, pairs, rows) \
    static __attribute__((noinline)) void name##_##rows(float *out, const float *p, const few_rows *f, const void *const *value, int64_t offset, const char *soon) \
    { \
        weigh(t, rows, pairs, f->once, out, p, f, value, offset, soon, NULL); \
    }
#define WEIGH_AGAIN(name, t, pairs, rows) \
    static __attribute__((noinline)) void name##_##rows(float *out, const float *p, const few_rows *f, const void *const *value, int64_t offset, const char *soon) \
    { \
        weigh(t, rows, pairs, true, out, p, f, value, offset, soon, f->again); \
    }
#define WEIGH_HEADS(name, t, pairs, rows) \
    static __attribute__((noinline)) void name##_##rows(float *out, const float *p, const few_rows *f, const void *const *value, const char *const *soon, int64_t h, int64_t end) \
    { \
        if (f->once) weigh_heads(t, rows, pairs, true, out, p, f, value, soon, h, end); \
        else weigh_heads(t, rows, pairs, false, out, p, f, value, soon, h, end); \
    }
#define WEIGH_TO_4(make, name, t, pairs) make(name, t, pairs, 1) make(name, t, pairs, 2) make(name, t, pairs, 3) make(name, t, pairs, 4)
#define WEIGH_TO_8(make, name, t, pairs) WEIGH_TO_4(make, name, t, pairs) make(name, t, pairs, 5) make(name, t, pairs, 6) make(name, t, pairs, 7) make(name, t, pairs, 8)
#if defined(__AVX512F__)
#define WEIGH_ALL(make, type, name, t, pairs) \
    WEIGH_TO_8(make, name, t, pairs) \
    static type *const name[] = { name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8 };
#else
#define WEIGH_ALL(make, type, name, t, pairs) \
    WEIGH_TO_4(make, name, t, pairs) \
    static type *const name[] = { name##_1, name##_2, name##_3, name##_4 };
#endif
#define WEIGH_ALL_AGAIN(name, t, pairs) \
    WEIGH_TO_4(WEIGH_AGAIN, name, t, pairs) \
    static weigh_fn *const name[AGAIN_ROWS] = { name##_1, name##_2, name##_3, name##_4 };
/* clang-format on */
enum { WEIGH_ROWS = VF == 16 ? 8 : 4 };
WEIGH_ALL(WEIGH, weigh_fn, weigh_f32, SGK_F32, false)
WEIGH_ALL(WEIGH, weigh_fn, weigh_f16, SGK_F16, false)
WEIGH_ALL(WEIGH, weigh_fn, weigh_bf16, SGK_BF16, false)
WEIGH_ALL(WEIGH_HEADS, weigh_heads_fn, weigh_e4m3, SGK_E4M3, false)
WEIGH_ALL_AGAIN(weigh_f32_again, SGK_F32, false)
WEIGH_ALL_AGAIN(weigh_f16_again, SGK_F16, false)
WEIGH_ALL_AGAIN(weigh_bf16_again, SGK_BF16, false)
#if defined(__AVX512BF16__)
WEIGH_ALL(WEIGH, weigh_fn, weigh_bf16_pairs, SGK_BF16, true)
WEIGH_ALL(WEIGH_HEADS, weigh_heads_fn, weigh_e4m3_pairs, SGK_E4M3, true)
WEIGH_ALL_AGAIN(weigh_bf16_pairs_again, SGK_BF16, true)
#endif

/* The rows of four values under a head, of which the first `keys` are there: nothing else is read, and offset is 0. */
SGK_INLINE const void *const *padded(const void **to, sgk_dtype t, const void *const *value, int64_t offset, int32_t keys)
{
    static const float none[ATTENTION_MOST_DIM_V];             /* in place of keys behind the last one */
    for (int32_t j = 0; j < 4; ++j) to[j] = j < keys ? (const char *)value[j] + offset * size_of(t) : (const char *)none;
    return to;
}

/* out += p values for all rows under a head, for `keys` keys, at most four, from `value` on. */
SGK_INLINE void weigh_few(sgk_dtype t, const few_rows *f, float *out, const float *p, const void *const *value, int64_t offset, int32_t keys, const char *soon)
{
    const void      *some[4];
    weigh_fn *const *with = t == SGK_F32 ? weigh_f32 : t == SGK_F16 ? weigh_f16
                                                                    : weigh_bf16;
    if (f->again) with = t == SGK_F32 ? weigh_f32_again : t == SGK_F16 ? weigh_f16_again
                                                                       : weigh_bf16_again;
#if defined(__AVX512BF16__)
    if (value_in_pairs(t, f->dim_v)) with = f->again ? weigh_bf16_pairs_again : weigh_bf16_pairs;
#endif
    if (keys < 4) value = padded(some, t, value, offset, keys), offset = 0;
    for (int64_t left = f->rows, rows; left > 0; left -= rows, out += rows * f->dim_v, p += rows * KEYS, soon = NULL) {
        rows = left < WEIGH_ROWS ? left : WEIGH_ROWS;
        with[rows - 1](out, p, f, value, offset, soon);
    }
}

/* The same under heads [h, end), of e4m3; fewer than four keys under one. */
SGK_INLINE void weigh_few_e4m3(const few_rows *f, float *out, const float *p, const void *const *value, int64_t h, int64_t end, int32_t keys, const char *const *soon)
{
    const void            *some[4];
    weigh_heads_fn *const *with = weigh_e4m3;
#if defined(__AVX512BF16__)
    if (value_in_pairs(SGK_E4M3, f->dim_v)) with = weigh_e4m3_pairs;
#endif
    if (keys < 4) value = padded(some, SGK_E4M3, value, h * f->v_step, keys), soon += h, h = 0, end = 1;
    for (int64_t left = f->rows, rows; left > 0; left -= rows, out += rows * f->dim_v, p += rows * KEYS, soon = nothing) {
        rows = left < WEIGH_ROWS ? left : WEIGH_ROWS;
        with[rows - 1](out, p, f, value, soon, h, end);
    }
}

/* ---- many rows: lanes are rows ---------------------------------------------------------------------------------------- */

/* A row of the cache in f32, zeros behind its end. */
SGK_INLINE void widen(sgk_dtype t, float *to, const void *from, int32_t dim, int32_t padded)
{
    int32_t d = 0;
    for (; d + VF <= dim; d += VF) vf_store_f32(to + d, vf_load(t, from, d));
    if (d < dim) vf_store_f32(to + d, vf_load_part(t, from, d, dim - d)), d += VF;
    for (; d < padded; d += VF) vf_store_f32(to + d, vf_zero());
}

/* As soften_few, for scores [KEYS][lanes]. With pairs, the powers of two keys are left in [KEYS / 2][lanes], rounded to bf16. */
SGK_INLINE void soften_many(const piece *p, int32_t first, int32_t keys, const bool pairs)
{
    const vf scale = vf_set(p->scale), least = vf_set(-3.402823466e38f);
    for (int64_t i = 0; i < keys * p->lanes; i += VF) {
        const vf x = vf_mul(scale, vf_load_f32(p->scores + i));
        vf_store_f32(p->scores + i, p->a->softcap != 0 ? soft_capped(x, p->a->softcap) : x);
    }
    const struct attention_keys all = { attention_keys_of(p->a, p->s, (p->row + p->rows - 1) / p->a->group).begin, attention_keys_of(p->a, p->s, p->row / p->a->group).end };
    for (int32_t r = 0; r < p->rows && (first < all.begin || first + keys > all.end); ++r) {
        const struct attention_keys sees = attention_keys_of(p->a, p->s, (p->row + r) / p->a->group);
        const int32_t               lo = attention_between(0, sees.begin - first, keys), hi = attention_between(lo, sees.end - first, keys);
        for (int32_t j = 0; j < lo; ++j) p->scores[j * p->lanes + r] = -INFINITY;
        for (int32_t j = hi; j < keys; ++j) p->scores[j * p->lanes + r] = -INFINITY;
    }
    bool rises = false;
    for (int64_t r = 0; r < p->lanes; r += VF) {
        const vf before = vf_load_f32(p->most + r);
        vf       now = before, sum = vf_zero();
        for (int32_t j = 0; j < keys; ++j) now = vf_max(now, vf_load_f32(p->scores + j * p->lanes + r));
        const vf base = vf_max(now, least);
        if (pairs) {
#if defined(__AVX512BF16__)
            for (int32_t j = 0; j < keys; j += 2) {
                const vf x = vf_exp2(vf_sub(vf_load_f32(p->scores + j * p->lanes + r), base));
                const vf y = j + 1 < keys ? vf_exp2(vf_sub(vf_load_f32(p->scores + (j + 1) * p->lanes + r), base)) : vf_zero();
                sum        = vf_add(sum, vf_add(x, y));
                _mm512_storeu_si512(p->key + j / 2 * p->lanes + r, pairs_of(x, y));
            }
#endif
        } else {
            for (int32_t j = 0; j < keys; ++j) {
                const vf e = vf_exp2(vf_sub(vf_load_f32(p->scores + j * p->lanes + r), base));
                sum        = vf_add(sum, e);
                vf_store_f32(p->scores + j * p->lanes + r, e);
            }
        }
        const vf alpha = vf_exp2(vf_sub(before, base));
        vf_store_f32(p->alpha + r, alpha);
        vf_store_f32(p->most + r, now);
        vf_store_f32(p->sum + r, vf_fma(vf_load_f32(p->sum + r), alpha, sum));
        rises |= vf_most(vf_sub(base, vf_max(before, least))) != 0;
    }
    if (!rises) return;
    for (int32_t r = 0; r < p->rows; ++r) {
        const vf alpha = vf_set(p->alpha[r]);
        for (int64_t d = 0; d < p->dim_v; d += VF) vf_store_f32(p->out + r * p->dim_v + d, vf_mul(alpha, vf_load_f32(p->out + r * p->dim_v + d)));
    }
}

/* ---- a piece ---------------------------------------------------------------------------------------------------------- */

/* Where the rows of keys [first, first + keys) are; the last one again up to a multiple of four. */
SGK_INLINE void find(const piece *p, places *to, int64_t size, int32_t first, int32_t keys)
{
    const struct attention_args *a = p->a;
    for (int32_t j = 0; j < keys;) {
        const int32_t              slot  = p->s->leftpad + first + j;
        const bool                 fresh = a->apart && slot >= p->s->used;
        const struct attention_row at    = attention_row_of(a, p->s, p->n, p->kv_head, slot);
        const char                *key = (const char *)a->k + at.k * size, *value = (const char *)a->v + at.v * size;
        const int64_t              k_step = (fresh ? a->k_new_row_stride : a->k_row_stride) * size, v_step = (fresh ? a->v_new_row_stride : a->v_row_stride) * size;
        int32_t                    here = keys - j;                     /* that lie evenly apart */
        if (!fresh && a->page_size && a->page_size - slot % a->page_size < here) here = a->page_size - slot % a->page_size;
        if (!fresh && a->apart && p->s->used - slot < here) here = p->s->used - slot;
        for (const int32_t end = j + here; j < end; ++j, key += k_step, value += v_step) to->key[j] = key, to->value[j] = value;
    }
    for (int32_t j = keys; j % 4; ++j) to->key[j] = to->key[keys - 1], to->value[j] = to->value[keys - 1];
}

/* A row's place in q, out and q_v. */
SGK_INLINE int64_t row_at(const piece *p, int32_t r, int64_t batch_stride, int64_t row_stride, int64_t head_stride)
{
    const int32_t i = (p->row + r) / p->a->group, h = p->kv_head * p->a->group + (p->row + r) % p->a->group;
    return p->n * batch_stride + (p->s->q_begin + i) * row_stride + h * head_stride;
}

/* `dim` elements of every row at `q`, transposed to `to` [dim][lanes], or in pairs [dim / 2][lanes]. */
SGK_INLINE void transpose(sgk_dtype t, const piece *p, float *to, const void *q, int64_t batch_stride, int64_t row_stride, int64_t head_stride, int32_t dim, const bool pairs)
{
    float wide[ATTENTION_MOST_DIM + VF];
    for (int32_t r = 0; r < p->lanes; ++r) {
        if (r >= p->rows) {
            for (int32_t d = 0; d < (pairs ? dim / 2 : dim); ++d) to[d * p->lanes + r] = 0;
            continue;
        }
        const char *from = (const char *)q + row_at(p, r, batch_stride, row_stride, head_stride) * size_of(t);
        if (pairs) {
            for (int32_t d = 0; d < dim / 2; ++d) memcpy(to + d * p->lanes + r, from + 4 * d, 4);
        } else {
            widen(t, wide, from, dim, dim);
            for (int32_t d = 0; d < dim; ++d) to[d * p->lanes + r] = wide[d];
        }
    }
}

SGK_INLINE void begin_sums(const piece *p, int64_t rows)
{
    for (int64_t i = 0; i < p->rows * (int64_t)p->dim_v; i += VF) vf_store_f32(p->out + i, vf_zero());
    for (int64_t r = 0; r < rows; ++r) p->most[r] = -INFINITY, p->sum[r] = 0;
}

SGK_INLINE void load_queries(sgk_dtype t, const piece *p, const bool pairs)
{
    const struct attention_args *a = p->a;
    transpose(t, p, p->q, a->q, a->q_batch_stride, a->q_row_stride, a->q_head_stride, a->dim, pairs);
    if (a->q_v) transpose(t, p, p->q + (pairs ? a->dim / 2 : a->dim) * p->lanes, a->q_v, a->q_v_batch_stride, a->q_v_row_stride, a->q_v_head_stride, a->dim_v, pairs);
    begin_sums(p, p->lanes);
}

/* As dots() wants them. */
SGK_INLINE void load_few_queries(sgk_dtype t, const piece *p, const few_rows *f)
{
    const struct attention_args *a    = p->a;
    const int64_t                step = f->rows * VF;
    for (int32_t r = 0; r < p->rows; ++r) {
        const char *from = (const char *)a->q + row_at(p, r, a->q_batch_stride, a->q_row_stride, a->q_head_stride) * size_of(t);
        float      *to   = p->q + r * VF;
#if defined(__AVX512BF16__)
        if (t == SGK_BF16) {
            for (int32_t d = 0; d < a->dim; d += 32, to += step) _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(a->dim - d >= 32 ? ~0u : 0xffffu, (const uint16_t *)(const void *)from + d));
            continue;
        }
        if (t == SGK_E4M3) {
            for (int32_t d = 0; d < a->dim; d += 64, to += 2 * step) {
                __m512i x[2];
                e4m3_widen(&f->e4m3, _mm512_maskz_loadu_epi8(a->dim - d >= 64 ? ~0ull : (1ull << (a->dim - d)) - 1, from + d), x);
                _mm512_storeu_si512(to, x[0]), _mm512_storeu_si512(to + step, x[1]);
            }
            continue;
        }
#endif
        for (int32_t d = 0; d < a->dim; d += VF, to += step) vf_store_f32(to, vf_load(t, from, d));
    }
    begin_sums(p, p->rows);
}

/* The same rows under the h-th key head from p's. */
SGK_INLINE piece under_head(const piece *p, int32_t h)
{
    piece x = *p;
    x.kv_head += h;
    x.scale = attention_score_scale(p->a, p->n, x.kv_head) * (p->a->softcap != 0 ? 1 : LOG2_E);
    x.q += h * (int64_t)p->rows * p->dim, x.out += h * (int64_t)p->rows * p->dim_v, x.scores += h * (int64_t)p->rows * KEYS;
    x.most += h * p->rows, x.sum += h * p->rows;
    return x;
}

static int32_t at_most_keys(int32_t keys) { return keys < KEYS ? keys : KEYS; }

/* Some keys under all heads before the next ones. */
SGK_INLINE void attend_few(sgk_dtype t, const piece *p, int32_t heads, bool once)
{
    const struct attention_args *a    = p->a;
    const int64_t                size = size_of(t), k_bytes = a->dim * size, v_bytes = a->dim_v * size;
    const int64_t                q_step = p->rows * (int64_t)p->dim, out_step = p->rows * (int64_t)p->dim_v, score_step = p->rows * (int64_t)KEYS;     /* from head to head */
    const bool                   pairs = value_in_pairs(t, p->dim_v);
    few_rows                     f     = { .rows = p->rows, .dim = a->dim, .dim_v = a->dim_v, .k_step = a->k_head_stride, .v_step = a->v_head_stride, .once = once };
    f.twice                            = once && t != SGK_E4M3 && p->rows <= AGAIN_ROWS && k_bytes >= AGAIN_BYTES;
#if defined(__AVX512BF16__)
    if (t == SGK_E4M3) f.e4m3 = e4m3_to_bf16();
#endif
    const char *soon[ATTENTION_ROWS];
    places      at[2];
    int         which = 0;
    int32_t     keys  = at_most_keys(p->end - p->begin);
    ahead       next  = { 0 };
    if (keys > 0) {
        find(p, &at[0], size, p->begin, keys);
        next.now = rows_of(at[0].key, keys, heads, a->k_head_stride * size, k_bytes);
        for (int64_t i = 0; i < AHEAD; i += 4 * k_bytes) {
            const char *soon = next_pieces(&next, &f);
            if (soon) ask_now(once, soon, 4 * k_bytes);
        }
    }
    for (int32_t h = 0; h < heads; ++h) {
        const piece x = under_head(p, h);
        f.scale[h]    = x.scale;
        load_few_queries(t, &x, &f);
    }
    for (int32_t first = p->begin; first < p->end; which ^= 1) {
        const places *here = &at[which];
        const int32_t left = at_most_keys(p->end - first - keys);
        next.more          = rows_of(here->value, keys, heads, a->v_head_stride * size, v_bytes);
        for (int32_t j = 0; j < keys; j += 4) {                         /* places are filled up to a multiple of four */
            if (t == SGK_E4M3) {
                for (int32_t h = 0; h < heads; ++h) soon[h] = next_pieces(&next, &f);
                score_few_e4m3(&f, p->scores + j, p->q, here->key + j, heads, soon);
                continue;
            }
            for (int32_t h = 0; h < heads; ++h) {
                const char *piece = next_pieces(&next, &f);
                score_few(t, &f, p->scores + h * score_step + j, p->q + h * q_step, here->key + j, h * a->k_head_stride, piece, f.scale[h]);
            }
        }
        if (left > 0) find(p, &at[which ^ 1], size, first + keys, left);
        for (int32_t h = 0; h < heads; ++h) {
            const piece x = under_head(p, h);
            soften_few(&x, first, keys, pairs);
        }
        next.more = rows_of(at[which ^ 1].key, left, heads, a->k_head_stride * size, k_bytes);
        for (int32_t j = 0; j < keys; j += 4) {
            const float *powers = p->scores + (pairs ? j / 2 : j);
            if (t == SGK_E4M3) {
                for (int32_t h = 0; h < heads; ++h) soon[h] = next_pieces(&next, &f);
                if (keys - j >= 4) weigh_few_e4m3(&f, p->out, powers, here->value + j, 0, heads, 4, soon);
                for (int32_t h = 0; h < heads && keys - j < 4; ++h) weigh_few_e4m3(&f, p->out + h * out_step, powers + h * score_step, here->value + j, h, h + 1, keys - j, soon);
                continue;
            }
            for (int32_t h = 0; h < heads; ++h) {
                const char *piece = next_pieces(&next, &f);
                weigh_few(t, &f, p->out + h * out_step, powers + h * score_step, here->value + j, h * a->v_head_stride, keys - j, piece);
            }
        }
        first += keys, keys = left;
    }
}

SGK_INLINE void attend_many(sgk_dtype t, const piece *p)
{
    const struct attention_args *a = p->a;
    load_queries(t, p, false);
    const void   *query_at[ATTENTION_MOST_DIM], *query_v_at[ATTENTION_MOST_DIM_V], *wide_at[KEYS];
    const int32_t extra = a->q_v ? a->dim_v : 0;
    for (int32_t d = 0; d < a->dim; ++d) query_at[d] = p->q + d * p->lanes;
    for (int32_t d = 0; d < extra; ++d) query_v_at[d] = p->q + (a->dim + d) * p->lanes;
    for (int32_t j = 0; j < KEYS; ++j) wide_at[j] = p->value + j * p->dim_v;
    places at;
    for (int32_t first = p->begin, keys; first < p->end; first += keys) {
        keys = at_most_keys(p->end - first);
        find(p, &at, size_of(t), first, keys);
        for (int32_t j = 0; j < keys; ++j) {
            widen(t, p->key + j * p->dim, at.key[j], a->dim, p->dim);
            widen(t, p->value + j * p->dim_v, at.value[j], a->dim_v, p->dim_v);
        }
        multiply(SGK_F32, p->scores, p->lanes, keys, p->lanes, p->key, p->dim, 1, query_at, 0, a->dim, false);
        if (extra) multiply(SGK_F32, p->scores, p->lanes, keys, p->lanes, p->value, p->dim_v, 1, query_v_at, 0, extra, true);
        soften_many(p, first, keys, false);
        multiply(SGK_F32, p->out, p->dim_v, p->rows, p->dim_v, p->scores, 1, p->lanes, wide_at, 0, keys, true);
    }
}

#if defined(__AVX512BF16__)
static void attend_many_pairs(const piece *p)
{
    const struct attention_args *a = p->a;
    load_queries(SGK_BF16, p, true);
    const uint32_t *q = (const uint32_t *)(const void *)p->q, *q_v = q + a->dim / 2 * p->lanes;
    uint32_t       *values = (uint32_t *)(void *)p->value;              /* [KEYS / 2][dim_v] */
    const void     *row_at_p[ATTENTION_ROWS];
    for (int32_t r = 0; r < p->rows; ++r) row_at_p[r] = p->key + r;     /* p: [KEYS / 2][lanes] */
    places at;
    for (int32_t first = p->begin, keys; first < p->end; first += keys) {
        keys = at_most_keys(p->end - first);
        find(p, &at, 2, first, keys);
        for (int32_t j = 0; j < keys; j += 2) interleave(values + j / 2 * p->dim_v, at.value[j], j + 1 < keys ? at.value[j + 1] : NULL, a->dim_v);
        multiply_pairs(p->scores, p->lanes, keys, p->lanes, at.key, 4, q, p->lanes, a->dim / 2, false);
        if (a->q_v) multiply_pairs(p->scores, p->lanes, keys, p->lanes, at.value, 4, q_v, p->lanes, a->dim_v / 2, true);
        soften_many(p, first, keys, true);
        multiply_pairs(p->out, p->dim_v, p->rows, p->dim_v, row_at_p, 4 * p->lanes, values, p->dim_v, (keys + 1) / 2, true);
    }
}
#endif

/* Rows of out from sums that are not divided yet. */
SGK_INLINE void finish_row(sgk_dtype t, const piece *p, int32_t r, const float *out, float most, float sum, const bool turned)
{
    const struct attention_args *a     = p->a;
    const int32_t                h     = p->kv_head * a->group + (p->row + r) % a->group;
    const int64_t                at    = row_at(p, r, a->out_batch_stride, a->out_row_stride, a->out_head_stride);
    const bool                   none  = sum == 0;                      /* saw no key */
    float                        scale = 0, lse = a->empty_lse;
    most *= LN_2;
    if (!none && a->sinks) {
        const float sink = (float)load_as_f64(a->sinks, h, a->sinks_dtype), base = most > sink ? most : sink, weight = expf(most - base);
        sum   = sum * weight + expf(sink - base);
        scale = weight / sum, lse = base + logf(sum);
    } else if (!none) {
        scale = 1 / sum, lse = most + logf(sum);
    }
    const vf times = vf_set(scale * attention_value_scale(a, p->n, p->kv_head));
    int32_t  d     = 0;
    (void)turned;
#if defined(__AVX512BF16__)
    if (turned) {                                                       /* as value_pairs() turned them */
        const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
        for (; d < a->dim_v; d += 32) {
            const vf x = vf_mul(times, vf_load_f32(out + d)), y = vf_mul(times, vf_load_f32(out + d + 16));
            vf_store2(t, a->out, at + d, _mm512_castpd_ps(_mm512_permutex2var_pd(_mm512_castps_pd(x), low, _mm512_castps_pd(y))),
                      _mm512_castpd_ps(_mm512_permutex2var_pd(_mm512_castps_pd(x), high, _mm512_castps_pd(y))));
        }
    }
#endif
    for (; d + VF <= a->dim_v; d += VF) vf_store(t, a->out, at + d, vf_mul(times, vf_load_f32(out + d)));
    if (d < a->dim_v) vf_store_part(t, a->out, at + d, a->dim_v - d, vf_mul(times, vf_load_f32(out + d)));
    if (a->softmax_lse) a->softmax_lse[row_at(p, r, a->lse_batch_stride, 1, a->lse_head_stride)] = lse;
}

/* The partial results of a span: rows of out, then the largest scores, then the sums. */
SGK_INLINE void keep_partial(const piece *p, float *to)
{
    memcpy(to, p->out, (size_t)p->rows * (size_t)p->dim_v * 4);
    memcpy(to + p->rows * p->dim_v, p->most, (size_t)p->rows * 4);
    memcpy(to + p->rows * (p->dim_v + 1), p->sum, (size_t)p->rows * 4);
}

SGK_INLINE void combine(sgk_dtype t, const piece *p, const float *partials, int64_t step, int32_t spans, const bool turned)
{
    for (int32_t r = 0; r < p->rows; ++r) {
        const float *mosts = partials + p->rows * p->dim_v + r, *sums = mosts + p->rows;
        float        most = -INFINITY, sum = 0, lanes[VF];
        for (int32_t i = 0; i < spans; ++i) most = mosts[i * step] > most ? mosts[i * step] : most;
        for (int64_t d = 0; d < p->dim_v; d += VF) vf_store_f32(p->out + d, vf_zero());
        for (int32_t i = 0; i < spans; ++i) {
            if (sums[i * step] == 0) continue;                          /* saw no key */
            const vf     weight = vf_exp2(vf_set(mosts[i * step] - most));
            const float *out    = partials + i * step + r * p->dim_v;
            for (int64_t d = 0; d < p->dim_v; d += VF) vf_store_f32(p->out + d, vf_fma(weight, vf_load_f32(out + d), vf_load_f32(p->out + d)));
            vf_store_f32(lanes, weight);
            sum += lanes[0] * sums[i * step];
        }
        finish_row(t, p, r, p->out, most, sum, turned);
    }
}

SGK_INLINE void run_item(sgk_dtype t, const struct attention_work *w, const struct attention_plan *plan, int32_t n, int64_t item, float *buffer)
{
    const struct attention_args *a    = &w->a;
    const sgk_dtype              made = t == SGK_E4M3 ? SGK_BF16 : t;   /* out_dtype, known here */
    const int32_t                span = (int32_t)(item % plan->spans), block = (int32_t)(item / plan->spans % plan->blocks);
    const int32_t                unit = (int32_t)(item / plan->spans / plan->blocks), kv_head = unit * plan->heads;
    const int32_t                rows = plan->sequence.sq * a->group, row = block * ATTENTION_ROWS;
    const int32_t                heads = a->kv_heads - kv_head < plan->heads ? a->kv_heads - kv_head : plan->heads;
    piece                        p     = { .a = a, .s = &plan->sequence, .n = n, .kv_head = kv_head, .row = row, .dim = w->padded_dim, .dim_v = w->padded_dim_v, .rows = rows - row < ATTENTION_ROWS ? rows - row : ATTENTION_ROWS };
    p.few                              = p.rows <= ATTENTION_FEW_ROWS && a->dim % VF == 0 && a->dim_v % VF == 0 && !a->q_v && (!PAIRS(t) || t != SGK_E4M3 || a->dim >= 32);
    if (p.few) p.dim = a->dim, p.dim_v = a->dim_v;
    p.lanes = (p.rows + 15) / 16 * 16;

    p.begin = attention_keys_of(a, p.s, row / a->group).begin;
    p.end   = attention_keys_of(a, p.s, (row + p.rows - 1) / a->group).end;
    if (plan->spans > 1) {
        p.begin += span * ATTENTION_SPAN;
        if (p.end > p.begin + ATTENTION_SPAN) p.end = p.begin + ATTENTION_SPAN;
    }
    const int64_t most_rows = (w->max_rows + 15) / 16 * 16;
    p.q                     = buffer, buffer += most_rows * (w->padded_dim + (a->q_v ? w->padded_dim_v : 0));
    p.out                   = buffer, buffer += most_rows * w->padded_dim_v;
    p.scores                = buffer, buffer += most_rows * KEYS;
    p.most                  = buffer, buffer += most_rows;
    p.sum                   = buffer, buffer += most_rows;
    p.alpha                 = buffer, buffer += 2 * most_rows;
    p.key                   = buffer, buffer += KEYS * (w->padded_dim > ATTENTION_ROWS ? w->padded_dim : ATTENTION_ROWS);
    p.value                 = buffer;

    const bool turned = p.few && t == SGK_BF16 && value_in_pairs(t, a->dim_v);
    if (p.few) attend_few(t, &p, heads, w->once);
    const int64_t partial_size = (int64_t)p.rows * (w->padded_dim_v + 2);
    float        *partials     = w->partials + plan->partials + kv_head * plan->spans * partial_size;
    for (int32_t h = 0; h < heads; ++h) {
        piece x   = under_head(&p, p.few ? h : 0);
        x.kv_head = kv_head + h;
        x.scale   = attention_score_scale(a, n, x.kv_head) * (a->softcap != 0 ? 1 : LOG2_E);
        if (!p.few) {                                                   /* heads is 1, unless few rows are not for attend_few */
#if defined(__AVX512BF16__)
            if (t == SGK_BF16 && a->dim % 2 == 0 && (!a->q_v || a->dim_v % 2 == 0)) attend_many_pairs(&x);
            else
#endif
                attend_many(t, &x);
        }
        if (plan->spans > 1) keep_partial(&x, partials + (h * plan->spans + span) * partial_size);
        else
            for (int32_t r = 0; r < x.rows; ++r) finish_row(made, &x, r, x.out + r * x.dim_v, x.most[r], x.sum[r], turned);
    }
    if (plan->spans == 1 || __atomic_sub_fetch(&w->left[plan->first_unit + unit], 1, __ATOMIC_ACQ_REL)) return;
    for (int32_t h = 0; h < heads; ++h) {
        p.kv_head = kv_head + h;
        combine(made, &p, partials + h * plan->spans * partial_size, partial_size, plan->spans, turned);
    }
}

SGK_INLINE void run_items(sgk_dtype t, const struct attention_work *w, float *buffer)
{
    int32_t n = 0;
    for (;;) {
        const int64_t item = __atomic_fetch_add(w->next, 1, __ATOMIC_RELAXED);
        if (item >= w->items) return;
        while (n + 1 < w->a.batch && w->plan[n + 1].first_item <= item) ++n;    /* items are dealt out in order: never back */
        run_item(t, w, &w->plan[n], n, item - w->plan[n].first_item, buffer);
    }
}

void SGK_CPU_FN(attention)(const void *args, int64_t begin, int64_t end)
{
    const struct attention_work *w = args;
    for (int64_t slot = begin; slot < end; ++slot) {
        float *buffer = (float *)(w->buffers + slot * w->buffer_bytes);
        if (w->a.dtype == SGK_F32) run_items(SGK_F32, w, buffer);
        else if (w->a.dtype == SGK_F16) run_items(SGK_F16, w, buffer);
        else if (w->a.dtype == SGK_E4M3) run_items(SGK_E4M3, w, buffer);
        else run_items(SGK_BF16, w, buffer);
    }
}
