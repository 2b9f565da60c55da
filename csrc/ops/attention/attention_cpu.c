/*
 * Attention in one pass over the keys, 64 at a time, with a running maximum and sum for each row (a row is a query under one of
 * the group's heads, so keys and values are read once for the group).
 *
 * Few rows (decode) are bound by memory: keys and values are used where they lie, rows prefetched one block ahead, scores by dot
 * products. Many rows (prefill) are bound by arithmetic: each block of keys is widened to f32 once, and scores are made transposed,
 * S' = K Q', so that the lanes of a vector are rows: no sums across lanes, and both products are the same small matrix kernel.
 */
#include <math.h>
#include "attention_cpu.h"
#include "cpu/simd.h"

enum { KEYS = ATTENTION_KEYS,
       TILE_VECS = VF == 8 ? 2 : 4 };       /* AVX2 has 16 registers, the others 32 */

typedef struct {                    /* one block of rows under one key head, over one span of keys */
    const struct attention_args     *a;
    const struct attention_sequence *s;
    int32_t                          n, kv_head, row, rows;  /* of the sequence: rows [row, row + rows) */
    int32_t                          begin, end;             /* keys that any of them sees, within the span */
    int32_t                          dim;                    /* padded: columns of q and out */
    bool                             few;
    float                           *q;                      /* few: [rows][dim]; many: times scale and transposed, [dim][lanes] */
    float                           *out;                    /* [rows][dim] */
    float                           *scores;                 /* few: [rows][KEYS]; many: [KEYS][lanes] */
    float                           *most, *sum, *alpha;     /* of a row so far: the largest score, the sum of e^(score - most); what the last block's rise scales by */
    float                           *key, *value;            /* many: the block in f32, [KEYS][dim] */
    int64_t                          lanes;                  /* rows rounded up to 16 */
} piece;

typedef struct { const void *key[KEYS], *value[KEYS]; } places;        /* of a block of keys */

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

SGK_INLINE void prefetch(const void *row, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)row + i, 0, 2);
}

/* While one block is worked on, the next one is on its way to the second-level cache; rows of a cache are too far apart for the
 * processor to guess. The head's elements are at key_offset and value_offset in the rows. */
SGK_INLINE void score_few(sgk_dtype t, const piece *p, const void *const *key, int64_t key_offset, int64_t value_offset, int32_t keys,
                          const places *next, int32_t more)
{
    const int64_t size = t == SGK_F32 ? 4 : 2, bytes = p->a->dim * size;
    for (int32_t j = 0; j < keys; j += 4) {                             /* places are filled up to a multiple of four */
        for (int32_t i = j; i < j + 4 && i < more; ++i) {
            prefetch((const char *)next->key[i] + key_offset * size, bytes);
            prefetch((const char *)next->value[i] + value_offset * size, bytes);
        }
        int32_t r = 0;
        for (; r + 4 <= p->rows; r += 4) dots(t, 4, p->scores + r * KEYS + j, p->q + r * p->dim, p->dim, key + j, key_offset, p->a->scale);
        if (p->rows & 2) dots(t, 2, p->scores + r * KEYS + j, p->q + r * p->dim, p->dim, key + j, key_offset, p->a->scale), r += 2;
        if (p->rows & 1) dots(t, 1, p->scores + r * KEYS + j, p->q + r * p->dim, p->dim, key + j, key_offset, p->a->scale);
    }
}

/* Turns scores into e^(score - most), keeps most, sum and out up to date. Keys [first, first + keys). */
SGK_INLINE void soften_few(const piece *p, int32_t first, int32_t keys)
{
    for (int32_t r = 0; r < p->rows; ++r) {
        const struct attention_keys sees = attention_keys_of(p->a, p->s, (p->row + r) / p->a->group);
        const int32_t               lo = attention_between(0, sees.begin - first, keys), hi = attention_between(lo, sees.end - first, keys);
        float                      *score = p->scores + r * KEYS;
        for (int32_t j = 0; j < lo; ++j) score[j] = -INFINITY;
        for (int32_t j = hi; j < KEYS; ++j) score[j] = -INFINITY;

        vf most = vf_set(p->most[r]), sum = vf_zero();
        for (int32_t j = 0; j < KEYS; j += VF) most = vf_max(most, vf_load_f32(score + j));
        const float now = vf_most(most), base = now == -INFINITY ? 0 : now;
        for (int32_t j = 0; j < KEYS; j += VF) {
            const vf e = vf_exp(vf_sub(vf_load_f32(score + j), vf_set(base)));
            sum        = vf_add(sum, e);
            vf_store_f32(score + j, e);
        }
        const float rise = p->most[r] - base;
        if (rise != 0) {
            const vf alpha = vf_exp(vf_set(rise));
            for (int64_t d = 0; d < p->dim; d += VF) vf_store_f32(p->out + r * p->dim + d, vf_mul(alpha, vf_load_f32(p->out + r * p->dim + d)));
            vf_store_f32(p->alpha, alpha);
            p->sum[r] *= p->alpha[0];
        }
        p->most[r] = now;
        p->sum[r] += vf_sum(sum);
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

/* As soften_few, for scores [KEYS][lanes]. */
SGK_INLINE void soften_many(const piece *p, int32_t first, int32_t keys)
{
    for (int32_t r = 0; r < p->rows; ++r) {
        const struct attention_keys sees = attention_keys_of(p->a, p->s, (p->row + r) / p->a->group);
        const int32_t               lo = attention_between(0, sees.begin - first, keys), hi = attention_between(lo, sees.end - first, keys);
        for (int32_t j = 0; j < lo; ++j) p->scores[j * p->lanes + r] = -INFINITY;
        for (int32_t j = hi; j < keys; ++j) p->scores[j * p->lanes + r] = -INFINITY;
    }
    const vf least = vf_set(-3.402823466e38f);                          /* instead of -inf, whose difference with itself is no number */
    bool     rises = false;
    for (int64_t r = 0; r < p->lanes; r += VF) {
        const vf before = vf_load_f32(p->most + r);
        vf       now = before, sum = vf_zero();
        for (int32_t j = 0; j < keys; ++j) now = vf_max(now, vf_load_f32(p->scores + j * p->lanes + r));
        const vf base = vf_max(now, least);
        for (int32_t j = 0; j < keys; ++j) {
            const vf e = vf_exp(vf_sub(vf_load_f32(p->scores + j * p->lanes + r), base));
            sum        = vf_add(sum, e);
            vf_store_f32(p->scores + j * p->lanes + r, e);
        }
        const vf alpha = vf_exp(vf_sub(before, base));
        vf_store_f32(p->alpha + r, alpha);
        vf_store_f32(p->most + r, now);
        vf_store_f32(p->sum + r, vf_fma(vf_load_f32(p->sum + r), alpha, sum));
        rises |= vf_most(vf_sub(base, vf_max(before, least))) != 0;
    }
    if (!rises) return;
    for (int32_t r = 0; r < p->rows; ++r) {
        const vf alpha = vf_set(p->alpha[r]);
        for (int64_t d = 0; d < p->dim; d += VF) vf_store_f32(p->out + r * p->dim + d, vf_mul(alpha, vf_load_f32(p->out + r * p->dim + d)));
    }
}

/* ---- a piece ---------------------------------------------------------------------------------------------------------- */

/* Where the rows of keys [first, first + keys) are; the last one again up to a multiple of four. */
SGK_INLINE void find(const piece *p, places *to, int64_t size, int32_t first, int32_t keys)
{
    const struct attention_args *a = p->a;
    for (int32_t j = 0; j < keys;) {
        const struct attention_place at    = attention_place_of(a, p->s, p->n, p->s->leftpad + first + j);
        const char                  *key   = (const char *)a->k + (at.batch * a->k_batch_stride + at.row * a->k_row_stride + p->kv_head * a->k_head_stride) * size;
        const char                  *value = (const char *)a->v + (at.batch * a->v_batch_stride + at.row * a->v_row_stride + p->kv_head * a->v_head_stride) * size;
        const int32_t                here  = a->page_size && a->page_size - at.row < keys - j ? a->page_size - at.row : keys - j;
        for (const int32_t end = j + here; j < end; ++j, key += a->k_row_stride * size, value += a->v_row_stride * size) to->key[j] = key, to->value[j] = value;
    }
    for (int32_t j = keys; j % 4; ++j) to->key[j] = to->key[keys - 1], to->value[j] = to->value[keys - 1];
}

SGK_INLINE void load_queries(sgk_dtype t, const piece *p)
{
    const struct attention_args *a   = p->a;
    float                       *row = p->few ? p->q : p->out;                                /* many: by way of out, which is still free */
    for (int32_t r = 0; r < p->rows; ++r, row += p->dim) {
        const int32_t i = (p->row + r) / a->group, h = p->kv_head * a->group + (p->row + r) % a->group;
        const int64_t at   = p->n * a->q_batch_stride + (p->s->q_begin + i) * a->q_row_stride + h * a->q_head_stride;
        const void   *from = (const char *)a->q + at * (t == SGK_F32 ? 4 : 2);
#if defined(__AVX512BF16__)
        if (t == SGK_BF16 && p->few) {
            memcpy(row, from, (size_t)a->dim * 2);                      /* as dots() wants them */
            continue;
        }
#endif
        widen(t, row, from, a->dim, p->dim);
    }
    if (!p->few)
        for (int32_t d = 0; d < p->dim; ++d)
            for (int64_t r = 0; r < p->lanes; ++r) p->q[d * p->lanes + r] = r < p->rows ? p->out[r * p->dim + d] * a->scale : 0;
    for (int64_t i = 0; i < p->rows * (int64_t)p->dim; i += VF) vf_store_f32(p->out + i, vf_zero());
    for (int64_t r = 0; r < (p->few ? p->rows : p->lanes); ++r) p->most[r] = -INFINITY, p->sum[r] = 0;
}

/* The same rows under the h-th key head from p's. */
SGK_INLINE piece under_head(const piece *p, int32_t h)
{
    piece x = *p;
    x.kv_head += h;
    x.q += h * (int64_t)p->rows * p->dim, x.out += h * (int64_t)p->rows * p->dim;
    x.most += h * p->rows, x.sum += h * p->rows;
    return x;
}

static int32_t at_most_keys(int32_t keys) { return keys < KEYS ? keys : KEYS; }

/* Head by head in each block of keys, while the block is in the cache. */
SGK_INLINE void attend_few(sgk_dtype t, const piece *p, int32_t heads)
{
    const int64_t size = t == SGK_F32 ? 4 : 2;
    for (int32_t h = 0; h < heads; ++h) {
        const piece x = under_head(p, h);
        load_queries(t, &x);
    }
    places  at[2];
    int     which = 0;
    int32_t keys  = at_most_keys(p->end - p->begin);
    if (keys > 0) find(p, &at[which], size, p->begin, keys);
    for (int32_t first = p->begin; first < p->end; which ^= 1) {
        const int32_t next = first + keys, more = at_most_keys(p->end - next);
        if (more > 0) find(p, &at[which ^ 1], size, next, more);
        for (int32_t h = 0; h < heads; ++h) {
            const piece x = under_head(p, h);
            score_few(t, &x, at[which].key, h * p->a->k_head_stride, h * p->a->v_head_stride, keys, &at[which ^ 1], more);
            soften_few(&x, first, keys);
            multiply(t, x.out, x.dim, x.rows, x.dim, x.scores, KEYS, 1, at[which].value, h * p->a->v_head_stride, keys, true);
        }
        first = next, keys = more;
    }
}

SGK_INLINE void attend_many(sgk_dtype t, const piece *p)
{
    load_queries(t, p);
    const void *query_at[256], *wide_at[KEYS];
    for (int32_t d = 0; d < p->dim; ++d) query_at[d] = p->q + d * p->lanes;
    for (int32_t j = 0; j < KEYS; ++j) wide_at[j] = p->value + j * p->dim;
    places at;
    for (int32_t first = p->begin, keys; first < p->end; first += keys) {
        keys = at_most_keys(p->end - first);
        find(p, &at, t == SGK_F32 ? 4 : 2, first, keys);
        for (int32_t j = 0; j < keys; ++j) {
            widen(t, p->key + j * p->dim, at.key[j], p->a->dim, p->dim);
            widen(t, p->value + j * p->dim, at.value[j], p->a->dim, p->dim);
        }
        multiply(SGK_F32, p->scores, p->lanes, keys, p->lanes, p->key, p->dim, 1, query_at, 0, p->a->dim, false);
        soften_many(p, first, keys);
        multiply(SGK_F32, p->out, p->dim, p->rows, p->dim, p->scores, 1, p->lanes, wide_at, 0, keys, true);
    }
}

/* Rows of out from sums that are not divided yet. */
SGK_INLINE void finish_row(sgk_dtype t, const piece *p, int32_t r, const float *out, float most, float sum)
{
    const struct attention_args *a = p->a;
    const int32_t                i = (p->row + r) / a->group, h = p->kv_head * a->group + (p->row + r) % a->group;
    const int64_t                at    = p->n * a->out_batch_stride + (p->s->q_begin + i) * a->out_row_stride + h * a->out_head_stride;
    const vf                     scale = vf_set(sum == 0 ? 0 : 1 / sum);
    int32_t                      d     = 0;
    for (; d + VF <= a->dim; d += VF) vf_store(t, a->out, at + d, vf_mul(scale, vf_load_f32(out + d)));
    if (d < a->dim) vf_store_part(t, a->out, at + d, a->dim - d, vf_mul(scale, vf_load_f32(out + d)));
    if (a->softmax_lse)
        a->softmax_lse[p->n * a->lse_batch_stride + h * a->lse_head_stride + p->s->q_begin + i] = sum == 0 ? a->empty_lse : most + logf(sum);
}

/* The partial results of a span: rows of out, then the largest scores, then the sums. */
SGK_INLINE void keep_partial(const piece *p, float *to)
{
    memcpy(to, p->out, (size_t)p->rows * (size_t)p->dim * 4);
    memcpy(to + p->rows * p->dim, p->most, (size_t)p->rows * 4);
    memcpy(to + p->rows * (p->dim + 1), p->sum, (size_t)p->rows * 4);
}

SGK_INLINE void combine(sgk_dtype t, const piece *p, const float *partials, int64_t step, int32_t spans)
{
    for (int32_t r = 0; r < p->rows; ++r) {
        const float *mosts = partials + p->rows * p->dim + r, *sums = mosts + p->rows;
        float        most = -INFINITY, sum = 0, lanes[VF];
        for (int32_t i = 0; i < spans; ++i) most = mosts[i * step] > most ? mosts[i * step] : most;
        for (int64_t d = 0; d < p->dim; d += VF) vf_store_f32(p->out + d, vf_zero());
        for (int32_t i = 0; i < spans; ++i) {
            if (sums[i * step] == 0) continue;                          /* saw no key */
            const vf     weight = vf_exp(vf_set(mosts[i * step] - most));
            const float *out    = partials + i * step + r * p->dim;
            for (int64_t d = 0; d < p->dim; d += VF) vf_store_f32(p->out + d, vf_fma(weight, vf_load_f32(out + d), vf_load_f32(p->out + d)));
            vf_store_f32(lanes, weight);
            sum += lanes[0] * sums[i * step];
        }
        finish_row(t, p, r, p->out, most, sum);
    }
}

SGK_INLINE void run_item(sgk_dtype t, const struct attention_work *w, const struct attention_plan *plan, int32_t n, int64_t item, float *buffer)
{
    const struct attention_args *a    = &w->a;
    const int32_t                span = (int32_t)(item % plan->spans), block = (int32_t)(item / plan->spans % plan->blocks);
    const int32_t                unit = (int32_t)(item / plan->spans / plan->blocks), kv_head = unit * plan->heads;
    const int32_t                rows = plan->sequence.sq * a->group, row = block * ATTENTION_ROWS;
    const int32_t                heads = a->kv_heads - kv_head < plan->heads ? a->kv_heads - kv_head : plan->heads;
    piece                        p     = { .a = a, .s = &plan->sequence, .n = n, .kv_head = kv_head, .row = row, .dim = w->padded_dim, .rows = rows - row < ATTENTION_ROWS ? rows - row : ATTENTION_ROWS };
    p.few                              = p.rows <= ATTENTION_FEW_ROWS && a->dim % VF == 0;
    if (p.few) p.dim = a->dim;
    p.lanes = (p.rows + 15) / 16 * 16;

    p.begin = attention_keys_of(a, p.s, row / a->group).begin;
    p.end   = attention_keys_of(a, p.s, (row + p.rows - 1) / a->group).end;
    if (plan->spans > 1) {
        p.begin += span * ATTENTION_SPAN;
        if (p.end > p.begin + ATTENTION_SPAN) p.end = p.begin + ATTENTION_SPAN;
    }
    const int64_t most_rows = (w->max_rows + 15) / 16 * 16;
    p.q                     = buffer, buffer += most_rows * w->padded_dim;
    p.out                   = buffer, buffer += most_rows * w->padded_dim;
    p.scores                = buffer, buffer += most_rows * KEYS;
    p.most                  = buffer, buffer += most_rows;
    p.sum                   = buffer, buffer += most_rows;
    p.alpha                 = buffer, buffer += 2 * most_rows;
    p.key                   = buffer, buffer += KEYS * w->padded_dim;
    p.value                 = buffer;

    if (p.few) attend_few(t, &p, heads);
    const int64_t partial_size = (int64_t)p.rows * (w->padded_dim + 2);
    float        *partials     = w->partials + plan->partials + kv_head * plan->spans * partial_size;
    for (int32_t h = 0; h < heads; ++h) {
        piece x   = under_head(&p, p.few ? h : 0);
        x.kv_head = kv_head + h;
        if (!p.few) attend_many(t, &x);                                 /* heads is 1, unless the head size is no multiple of VF */
        if (plan->spans > 1) keep_partial(&x, partials + (h * plan->spans + span) * partial_size);
        else
            for (int32_t r = 0; r < x.rows; ++r) finish_row(t, &x, r, x.out + r * x.dim, x.most[r], x.sum[r]);
    }
    if (plan->spans == 1 || __atomic_sub_fetch(&w->left[plan->first_unit + unit], 1, __ATOMIC_ACQ_REL)) return;
    for (int32_t h = 0; h < heads; ++h) {
        p.kv_head = kv_head + h;
        combine(t, &p, partials + h * plan->spans * partial_size, partial_size, plan->spans);
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
        else run_items(SGK_BF16, w, buffer);
    }
}
