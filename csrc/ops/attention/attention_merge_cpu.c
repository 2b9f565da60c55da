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

/* Also writes the merged sum. */
SGK_INLINE merge_weights weights_of(const struct merge_state_args *a, merge_row r)
{
    const float sa = lse_of(&a->s_a, r.token, r.head), sb = lse_of(&a->s_b, r.token, r.head);
    const bool  has_a = sa != -INFINITY, has_b = sb != -INFINITY, empty = !has_a && !has_b;
    const float most = empty ? 0 : fmaxf(sa, sb);
    const float less = -fabsf(sa - sb), p = a->base2 ? exp2f(less) : expf(less);     /* the larger one has 1 */
    const float pa                                                    = empty ? 0 : sa == most ? 1
                                                                                               : p,
                pb                                                    = empty ? 0 : sb == most ? 1
                                                                                               : p,
                sum                                                   = pa + pb;
    ((float *)a->s_merged.data)[place(&a->s_merged, r.token, r.head)] = empty ? -INFINITY : (a->base2 ? log2f(sum) : logf(sum)) + most;
    return (merge_weights){ pa / sum, pb / sum, has_a, has_b };
}

enum { TOGETHER = 8,                                    /* rows whose weights are found one beside the other before any is written */
       NEXT     = 16 };                                 /* rows further on are asked for */

SGK_INLINE void merge_state_rows(sgk_dtype t, bool stream, const struct merge_state_args *a, int64_t begin, int64_t end)
{
    merge_row weighed = row_of(a, begin), row = weighed, soon = row_of(a, begin + NEXT < end ? begin + NEXT : begin);
    for (int64_t first = begin; first < end; first += TOGETHER) {
        const int     count = end - first < TOGETHER ? (int)(end - first) : TOGETHER;
        merge_weights w[TOGETHER];
        for (int n = 0; n < count; ++n, row_after(a, &weighed)) w[n] = weights_of(a, weighed);
        for (int n = 0; n < count; ++n, row_after(a, &row)) {
            const bool    has_a = w[n].has_a, has_b = w[n].has_b;
            const int64_t x = place(&a->v_a, row.token, row.head), y = place(&a->v_b, row.token, row.head), out = place(&a->v_merged, row.token, row.head);
            const int64_t next_x = place(&a->v_a, soon.token, soon.head), next_y = place(&a->v_b, soon.token, soon.head);
            int64_t       d = 0;
            for (; d + 2 * VF <= a->dim; d += 2 * VF) {
                vf u, v, p, q;
                vf_prefetch2(t, a->v_a.data, next_x + d), vf_prefetch2(t, a->v_b.data, next_y + d);
                vf_load_pairs(t, a->v_a.data, x + d, &u, &v), vf_load_pairs(t, a->v_b.data, y + d, &p, &q);
                vf_store_pairs(t, stream, a->v_merged.data, out + d, merged(u, w[n].a, has_a, p, w[n].b, has_b), merged(v, w[n].a, has_a, q, w[n].b, has_b));
            }
            for (; d + VF <= a->dim; d += VF)
                vf_store(t, a->v_merged.data, out + d, merged(vf_load(t, a->v_a.data, x + d), w[n].a, has_a, vf_load(t, a->v_b.data, y + d), w[n].b, has_b));
            if (d < a->dim)
                vf_store_part(t, a->v_merged.data, out + d, a->dim - d,
                              merged(vf_load_part(t, a->v_a.data, x + d, a->dim - d), w[n].a, has_a, vf_load_part(t, a->v_b.data, y + d, a->dim - d), w[n].b, has_b));
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
