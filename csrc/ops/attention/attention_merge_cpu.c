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

enum { NEXT = 16 };                                     /* rows further on are asked for */

SGK_INLINE void merge_state_rows(sgk_dtype t, const struct merge_state_args *a, int64_t begin, int64_t end)
{
    for (int64_t r = begin; r < end; ++r) {
        const int64_t token = r / a->heads, head = r % a->heads;
        const float   sa = lse_of(&a->s_a, token, head), sb = lse_of(&a->s_b, token, head);
        const bool    has_a = sa != -INFINITY, has_b = sb != -INFINITY, empty = !has_a && !has_b;
        const float   most = empty ? 0 : fmaxf(sa, sb);
        const float   less = -fabsf(sa - sb), p = a->base2 ? exp2f(less) : expf(less);     /* the larger one has 1 */
        const float   pa  = empty ? 0 : sa == most ? 1
                                                   : p,
                      pb  = empty ? 0 : sb == most ? 1
                                                   : p,
                      sum = pa + pb;
        const float   wa = pa / sum, wb = pb / sum;
        const int64_t x = place(&a->v_a, token, head), y = place(&a->v_b, token, head), out = place(&a->v_merged, token, head);
        const int64_t soon = r + NEXT < end ? r + NEXT : r, next_x = place(&a->v_a, soon / a->heads, soon % a->heads), next_y = place(&a->v_b, soon / a->heads, soon % a->heads);
        int64_t       d = 0;
        for (; d + 2 * VF <= a->dim; d += 2 * VF) {
            vf u, v, w, z;
            vf_prefetch2(t, a->v_a.data, next_x + d), vf_prefetch2(t, a->v_b.data, next_y + d);
            vf_load_pairs(t, a->v_a.data, x + d, &u, &v), vf_load_pairs(t, a->v_b.data, y + d, &w, &z);
            vf_store_pairs(t, false, a->v_merged.data, out + d, merged(u, wa, has_a, w, wb, has_b), merged(v, wa, has_a, z, wb, has_b));
        }
        for (; d + VF <= a->dim; d += VF)
            vf_store(t, a->v_merged.data, out + d, merged(vf_load(t, a->v_a.data, x + d), wa, has_a, vf_load(t, a->v_b.data, y + d), wb, has_b));
        if (d < a->dim)
            vf_store_part(t, a->v_merged.data, out + d, a->dim - d,
                          merged(vf_load_part(t, a->v_a.data, x + d, a->dim - d), wa, has_a, vf_load_part(t, a->v_b.data, y + d, a->dim - d), wb, has_b));
        ((float *)a->s_merged.data)[place(&a->s_merged, token, head)] = empty ? -INFINITY : (a->base2 ? log2f(sum) : logf(sum)) + most;
    }
}

void SGK_CPU_FN(merge_state)(const void *args, int64_t begin, int64_t end)
{
    const struct merge_state_args *a = args;
    if (a->dtype == SGK_F32) merge_state_rows(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) merge_state_rows(SGK_F16, a, begin, end);
    else merge_state_rows(SGK_BF16, a, begin, end);
}
