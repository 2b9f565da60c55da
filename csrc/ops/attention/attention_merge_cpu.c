#include <math.h>
#include "attention_merge.h"
#include "cpu/simd.h"

SGK_INLINE int64_t place(const struct merge_values *v, int64_t token, int64_t head) { return token * v->token_stride + head * v->head_stride; }

SGK_INLINE float lse_of(const struct merge_values *s, int64_t token, int64_t head)
{
    const float x = ((const float *)s->data)[place(s, token, head)];
    return isinf(x) ? -INFINITY : x;
}

/* x wx + y wy; a side that is not there is not looked at, for it may hold NaN. */
SGK_INLINE vf merged(vf x, float wx, bool has_x, vf y, float wy, bool has_y)
{
    const vf a = has_x ? vf_mul(x, vf_set(wx)) : vf_zero();
    return has_y ? vf_fma(y, vf_set(wy), a) : a;
}

/* Row r, counted up without a quotient. */
typedef struct { int64_t token, head; } merge_row;
SGK_INLINE merge_row row_of(const struct merge_state_args *a, int64_t r) { return (merge_row){ r / a->heads, r % a->heads }; }
SGK_INLINE void row_after(const struct merge_state_args *a, merge_row *r)
{
    if (++r->head == a->heads) ++r->token, r->head = 0;
}

typedef struct {
    float a, b;
    bool  has_a, has_b;
} merge_weights;

enum { TOGETHER = VF < 8 ? VF : 8,                       /* rows whose weights are found at once, before any is written */
       NEXT = 16 };                                 /* rows further on are asked for */

/* log(1 + x) for x from 0 to 1, right to 1e-7: 2 atanh(y), y = x / (2 + x). */
SGK_INLINE vf log_of_1_and(vf x)
{
    const vf y = vf_div(x, vf_add(x, vf_set(2))), z = vf_mul(y, y);
    vf       p = vf_set(2.0f / 13);
    p          = vf_fma(p, z, vf_set(2.0f / 11));
    p          = vf_fma(p, z, vf_set(2.0f / 9));
    p          = vf_fma(p, z, vf_set(2.0f / 7));
    p          = vf_fma(p, z, vf_set(2.0f / 5));
    p          = vf_fma(p, z, vf_set(2.0f / 3));
    p          = vf_fma(p, z, vf_set(2));
    return vf_mul(p, y);
}

/* Of `count` rows from `row` on, which goes on behind them. Also writes their merged sums. */
SGK_INLINE void weigh(const struct merge_state_args *a, merge_row *row, int count, merge_weights *w)
{
    float     sa[TOGETHER], sb[TOGETHER], less[VF] = { 0 }, smaller[VF], share[VF], more[VF];
    merge_row r = *row;
    for (int n = 0; n < count; ++n, row_after(a, row)) {
        sa[n] = lse_of(&a->s_a, row->token, row->head), sb[n] = lse_of(&a->s_b, row->token, row->head);
        less[n] = -fabsf(sa[n] - sb[n]);
    }
    const vf x = vf_load_f32(less), p = a->base2 ? vf_exp2(x) : vf_exp(x), log = log_of_1_and(p);       /* the larger one has 1 */
    vf_store_f32(smaller, p);
    vf_store_f32(share, vf_div(vf_set(1), vf_add(p, vf_set(1))));
    vf_store_f32(more, a->base2 ? vf_mul(log, vf_set(1.44269504f)) : log);
    for (int n = 0; n < count; ++n, row_after(a, &r)) {
        const bool  has_a = sa[n] != -INFINITY, has_b = sb[n] != -INFINITY;
        const float most = fmaxf(sa[n], sb[n]), second = smaller[n] * share[n];
        w[n]                                                              = (merge_weights){ sa[n] == most ? share[n] : second, sb[n] == most ? share[n] : second, has_a, has_b };
        ((float *)a->s_merged.data)[place(&a->s_merged, r.token, r.head)] = has_a || has_b ? more[n] + most : -INFINITY;
    }
}

/* One row of `dim` elements at x, y and out; those at next_x and next_y are asked for. A constant dim makes the loop straight. */
SGK_INLINE void merge_one(sgk_dtype t, bool stream, const struct merge_state_args *a, int64_t dim, merge_weights w, int64_t x, int64_t y, int64_t out, int64_t next_x, int64_t next_y)
{
    int64_t d = 0;
    for (; d + 2 * VF <= dim; d += 2 * VF) {
        vf u, v, p, q;
        vf_prefetch2(t, a->v_a.data, next_x + d), vf_prefetch2(t, a->v_b.data, next_y + d);
        vf_load_pairs(t, a->v_a.data, x + d, &u, &v), vf_load_pairs(t, a->v_b.data, y + d, &p, &q);
        vf_store_pairs(t, stream, a->v_merged.data, out + d, merged(u, w.a, w.has_a, p, w.b, w.has_b), merged(v, w.a, w.has_a, q, w.b, w.has_b));
    }
    for (; d + VF <= dim; d += VF)
        vf_store(t, a->v_merged.data, out + d, merged(vf_load(t, a->v_a.data, x + d), w.a, w.has_a, vf_load(t, a->v_b.data, y + d), w.b, w.has_b));
    if (d < dim)
        vf_store_part(t, a->v_merged.data, out + d, dim - d,
                      merged(vf_load_part(t, a->v_a.data, x + d, dim - d), w.a, w.has_a, vf_load_part(t, a->v_b.data, y + d, dim - d), w.b, w.has_b));
}

SGK_INLINE void merge_state_rows(sgk_dtype t, bool stream, const struct merge_state_args *a, int64_t begin, int64_t end)
{
    merge_row weighed = row_of(a, begin), row = weighed, soon = row_of(a, begin + NEXT < end ? begin + NEXT : begin);
    for (int64_t first = begin; first < end; first += TOGETHER) {
        const int     count = end - first < TOGETHER ? (int)(end - first) : TOGETHER;
        merge_weights w[TOGETHER];
        weigh(a, &weighed, count, w);
        for (int n = 0; n < count; ++n, row_after(a, &row)) {
            const int64_t x = place(&a->v_a, row.token, row.head), y = place(&a->v_b, row.token, row.head), out = place(&a->v_merged, row.token, row.head);
            const int64_t next_x = place(&a->v_a, soon.token, soon.head), next_y = place(&a->v_b, soon.token, soon.head);
            if (a->dim == 128 && w[n].has_a && w[n].has_b) merge_one(t, stream, a, 128, (merge_weights){ w[n].a, w[n].b, true, true }, x, y, out, next_x, next_y);
            else merge_one(t, stream, a, a->dim, w[n], x, y, out, next_x, next_y);
            if (first + n + NEXT + 1 < end) row_after(a, &soon);
        }
    }
}

SGK_INLINE void merge_state_of(sgk_dtype t, const struct merge_state_args *a, int64_t begin, int64_t end)
{
    const int64_t size  = t == SGK_F32 ? 4 : 2;
    const bool    lines = ((uintptr_t)a->v_merged.data | (uintptr_t)((a->v_merged.token_stride | a->v_merged.head_stride | a->dim) * size)) % 64 == 0;
    if (!lines || a->v_merged.data == a->v_a.data || a->v_merged.data == a->v_b.data || !a->dim || !sgk_cpu_streams(a->v_merged.data, a->rows, a->dim * size, size)) {
        merge_state_rows(t, false, a, begin, end);
        return;
    }
    merge_state_rows(t, true, a, begin, end);
    vf_stream_end();
}

/* No store can change the copy of the arguments. */
void SGK_CPU_FN(merge_state)(const void *args, int64_t begin, int64_t end)
{
    const struct merge_state_args a = *(const struct merge_state_args *)args;
    if (a.dtype == SGK_F32) merge_state_of(SGK_F32, &a, begin, end);
    else if (a.dtype == SGK_F16) merge_state_of(SGK_F16, &a, begin, end);
    else merge_state_of(SGK_BF16, &a, begin, end);
}
