/*
 * Attention in one pass over the keys, 64 at a time, with a running maximum and sum for each row (a row is a query under one of
 * the group's heads, so keys and values are read once for the group). Scores are in powers of two.
 *
 * Few rows (decode) are bound by memory: keys and values are used where they lie, scores by dot products, all heads of some keys before
 * the next keys, so that memory is read in the order of its addresses. Every line is asked for some kilobytes before it is used, evenly
 * between the products: neither so late that it is waited for, nor so many at once that they would push each other out of the first-level cache.
 *
 * Many rows (prefill) are bound by arithmetic: scores are made transposed, S' = K Q', so that the lanes of a vector are rows: no sums
 * across lanes, and both products are the same small matrix kernel. In f32 each block of keys is widened once. Where the processor
 * multiplies pairs of bf16 (AVX-512 BF16), a lane of q, p and v holds a pair of neighbours in the sum, and keys are used where they lie;
 * p is then rounded to bf16.
 */
#include <math.h>
#include "attention_cpu.h"
#include "cpu/simd.h"

enum { KEYS = ATTENTION_KEYS,
       TILE_VECS = VF == 8 ? 2 : 4,         /* AVX2 has 16 registers, the others 32 */
       AHEAD = 12288,                   /* decode: bytes between what is asked for and what is used, */
       FAR   = 12 };                    /* and rows until one whose page is looked up meanwhile */

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

/* Scores of `rows` rows with four keys whose elements begin at `offset`. */
SGK_INLINE void dots(sgk_dtype t, const int rows, float *scores, const float *q, int64_t dim, const void *const *key, int64_t offset, float scale)
{
    vf total[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) total[r][j] = vf_zero();
#if defined(__AVX512BF16__)
    if (t == SGK_BF16) {                                                /* load_queries left q in bf16, in rows of `dim` floats all the same */
        for (int64_t d = 0; d < dim; d += 32) {
            const __mmask32 there = dim - d >= 32 ? ~0u : 0xffffu;
            __m512bh        k[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) k[j] = (__m512bh)_mm512_maskz_loadu_epi16(there, (const uint16_t *)key[j] + offset + d);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const __m512bh x = (__m512bh)_mm512_maskz_loadu_epi16(there, (const uint16_t *)(q + r * dim) + d);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) total[r][j] = _mm512_dpbf16_ps(total[r][j], x, k[j]);
            }
        }
    } else
#endif
        for (int64_t d = 0; d < dim; d += VF) {
            vf k[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) k[j] = vf_load(t, key[j], offset + d);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const vf x = vf_load_f32(q + r * dim + d);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) total[r][j] = vf_fma(x, k[j], total[r][j]);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) v4_store(scores + r * KEYS, scale * vf_sums4(total[r][0], total[r][1], total[r][2], total[r][3]));
}

/* Rows that are read in turn, `heads` pieces each; when they have been asked for, `more` follow. */
typedef struct {
    const void *const *row;
    int32_t            rows;
    int64_t            step, bytes;             /* from head to head, of each */
} rows_ahead;

typedef struct {
    rows_ahead now, more;
    int32_t    heads, head;
    bool       once;                            /* no cache keeps them */
} ahead;

SGK_INLINE void ask(ahead *a, int32_t pieces)
{
    for (; pieces > 0; --pieces) {
        if (a->now.rows == 0) {
            if (a->more.rows == 0) return;
            a->now = a->more, a->more.rows = 0;
        }
        if (a->head == 0 && a->now.rows > FAR) __builtin_prefetch(a->now.row[FAR]);
        const char *piece = (const char *)*a->now.row + a->head * a->now.step;
        if (a->once)
            for (int64_t i = 0; i < a->now.bytes; i += 64) __builtin_prefetch(piece + i, 0, 0);
        else
            for (int64_t i = 0; i < a->now.bytes; i += 64) __builtin_prefetch(piece + i);
        if (++a->head == a->heads) a->head = 0, ++a->now.row, --a->now.rows;
    }
}

/* Scores of four keys with all rows. */
SGK_INLINE void score_few(sgk_dtype t, const piece *p, const void *const *key, int64_t offset, float *scores)
{
    int32_t r = 0;
    for (; r + 4 <= p->rows; r += 4) dots(t, 4, scores + r * KEYS, p->q + r * p->dim, p->dim, key, offset, p->scale);
    if (p->rows & 2) dots(t, 2, scores + r * KEYS, p->q + r * p->dim, p->dim, key, offset, p->scale), r += 2;
    if (p->rows & 1) dots(t, 1, scores + r * KEYS, p->q + r * p->dim, p->dim, key, offset, p->scale);
}

/* Turns scores into 2^(score - most), keeps most, sum and out up to date. Keys [first, first + keys). With pairs, the powers of two
 * neighbours are left in the first half of a row, rounded to bf16. */
SGK_INLINE void soften_few(const piece *p, int32_t first, int32_t keys, const bool pairs)
{
    const vf least = vf_set(-3.402823466e38f);                          /* instead of -inf, whose difference with itself is no number */
    for (int32_t r = 0; r < p->rows; ++r) {
        const struct attention_keys sees = attention_keys_of(p->a, p->s, (p->row + r) / p->a->group);
        const int32_t               lo = attention_between(0, sees.begin - first, keys), hi = attention_between(lo, sees.end - first, keys);
        float                      *score = p->scores + r * KEYS;
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
/* out[rows][64 columns] += p values, two keys at a time; their rows lie side by side in the sum. */
SGK_INLINE void weigh(const int rows, float *out, int64_t out_stride, const float *p, const void *const *value, int64_t offset, int32_t keys)
{
    const __m512i         low  = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i         high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    static const uint16_t none[64];                                     /* the last key may be alone */
    __m512                total[16];
#pragma GCC               unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) total[r * 4 + v] = _mm512_loadu_ps(out + r * out_stride + 16 * v);
    for (int32_t j = 0; j < keys; j += 2) {
        const uint16_t *x = (const uint16_t *)value[j] + offset, *y = j + 1 < keys ? (const uint16_t *)value[j + 1] + offset : none;
        __m512bh        w[4];
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const __m512i a = _mm512_loadu_si512(x + 32 * v), b = _mm512_loadu_si512(y + 32 * v);
            w[2 * v]     = (__m512bh)_mm512_permutex2var_epi16(a, low, b);
            w[2 * v + 1] = (__m512bh)_mm512_permutex2var_epi16(a, high, b);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const __m512bh e = (__m512bh)_mm512_set1_ps(p[r * KEYS + j / 2]);   /* a pair */
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) total[r * 4 + v] = _mm512_dpbf16_ps(total[r * 4 + v], e, w[v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) _mm512_storeu_ps(out + r * out_stride + 16 * v, total[r * 4 + v]);
}
#endif

/* out += p values for all rows, for keys [begin, end) of the block; the head's elements at `offset` in the rows of values. */
SGK_INLINE void weigh_few(sgk_dtype t, const piece *p, const void *const *value, int64_t offset, int32_t begin, int32_t end)
{
#if defined(__AVX512BF16__)
    if (t == SGK_BF16 && p->dim_v % 64 == 0) {
        for (int32_t d = 0; d < p->dim_v; d += 64) {
            int32_t      r   = 0;
            float       *out = p->out + d;
            const float *e   = p->scores + begin / 2;
            for (; r + 4 <= p->rows; r += 4) weigh(4, out + r * p->dim_v, p->dim_v, e + r * KEYS, value + begin, offset + d, end - begin);
            if (p->rows & 2) weigh(2, out + r * p->dim_v, p->dim_v, e + r * KEYS, value + begin, offset + d, end - begin), r += 2;
            if (p->rows & 1) weigh(1, out + r * p->dim_v, p->dim_v, e + r * KEYS, value + begin, offset + d, end - begin);
        }
        return;
    }
#endif
    multiply(t, p->out, p->dim_v, p->rows, p->dim_v, p->scores + begin, KEYS, 1, value + begin, offset, end - begin, true);
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

SGK_INLINE void load_queries(sgk_dtype t, const piece *p, const bool pairs)
{
    const struct attention_args *a = p->a;
    if (p->few) {
        for (int32_t r = 0; r < p->rows; ++r) {
            const void *from = (const char *)a->q + row_at(p, r, a->q_batch_stride, a->q_row_stride, a->q_head_stride) * size_of(t);
            if (pairs) memcpy(p->q + r * p->dim, from, (size_t)a->dim * 2);     /* as dots() wants them */
            else widen(t, p->q + r * p->dim, from, a->dim, p->dim);
        }
    } else {
        transpose(t, p, p->q, a->q, a->q_batch_stride, a->q_row_stride, a->q_head_stride, a->dim, pairs);
        if (a->q_v) transpose(t, p, p->q + (pairs ? a->dim / 2 : a->dim) * p->lanes, a->q_v, a->q_v_batch_stride, a->q_v_row_stride, a->q_v_head_stride, a->dim_v, pairs);
    }
    for (int64_t i = 0; i < p->rows * (int64_t)p->dim_v; i += VF) vf_store_f32(p->out + i, vf_zero());
    for (int64_t r = 0; r < (p->few ? p->rows : p->lanes); ++r) p->most[r] = -INFINITY, p->sum[r] = 0;
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

#if defined(__AVX512BF16__)
#define PAIRS(t) ((t) == SGK_BF16)
#else
#define PAIRS(t) false
#endif

/* Some keys under all heads before the next ones. */
SGK_INLINE void attend_few(sgk_dtype t, const piece *p, int32_t heads, bool once)
{
    const struct attention_args *a    = p->a;
    const int64_t                size = size_of(t), k_bytes = a->dim * size, v_bytes = a->dim_v * size;
    const int32_t                together = PAIRS(t) ? 4 : 8;           /* keys whose values are weighed at once */
    const int32_t                rows     = attention_between(4, (int32_t)(AHEAD / (heads * k_bytes)), KEYS / 2);
    piece                        under[ATTENTION_ROWS];
    places                       at[2];
    int                          which = 0;
    int32_t                      keys  = at_most_keys(p->end - p->begin);
    ahead                        next  = { .heads = heads, .once = once };
    if (keys > 0) {
        find(p, &at[0], size, p->begin, keys);
        next.now = (rows_ahead){ at[0].key, keys, a->k_head_stride * size, k_bytes };
        ask(&next, rows * heads);
    }
    for (int32_t h = 0; h < heads; ++h) {
        under[h] = under_head(p, h);
        load_queries(t, &under[h], PAIRS(t));
    }
    for (int32_t first = p->begin; first < p->end; which ^= 1) {
        const places *here = &at[which];
        const int32_t left = at_most_keys(p->end - first - keys);
        next.more          = (rows_ahead){ here->value, keys, a->v_head_stride * size, v_bytes };
        for (int32_t j = 0; j < keys; j += 4)                           /* places are filled up to a multiple of four */
            for (int32_t h = 0; h < heads; ++h) {
                ask(&next, 4);
                score_few(t, &under[h], here->key + j, h * a->k_head_stride, under[h].scores + j);
            }
        if (left > 0) find(p, &at[which ^ 1], size, first + keys, left);
        for (int32_t h = 0; h < heads; ++h) soften_few(&under[h], first, keys, PAIRS(t) && p->dim_v % 64 == 0);
        next.more = (rows_ahead){ at[which ^ 1].key, left, a->k_head_stride * size, k_bytes };
        for (int32_t j = 0; j < keys; j += together)
            for (int32_t h = 0; h < heads; ++h) {
                ask(&next, together);
                weigh_few(t, &under[h], here->value, h * a->v_head_stride, j, keys - j < together ? keys : j + together);
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
SGK_INLINE void finish_row(sgk_dtype t, const piece *p, int32_t r, const float *out, float most, float sum)
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

SGK_INLINE void combine(sgk_dtype t, const piece *p, const float *partials, int64_t step, int32_t spans)
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
        finish_row(t, p, r, p->out, most, sum);
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
    p.few                              = p.rows <= ATTENTION_FEW_ROWS && a->dim % VF == 0 && a->dim_v % VF == 0 && !a->q_v;
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
            for (int32_t r = 0; r < x.rows; ++r) finish_row(made, &x, r, x.out + r * x.dim_v, x.most[r], x.sum[r]);
    }
    if (plan->spans == 1 || __atomic_sub_fetch(&w->left[plan->first_unit + unit], 1, __ATOMIC_ACQ_REL)) return;
    for (int32_t h = 0; h < heads; ++h) {
        p.kv_head = kv_head + h;
        combine(made, &p, partials + h * plan->spans * partial_size, partial_size, plan->spans);
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
