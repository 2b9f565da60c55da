/* The definition. Everything else in this folder's attention_merge files is a faster way to get these numbers. */
#include <math.h>
#include "attention_merge.h"
#include "base/convert.h"
#include "cpu/cpu.h"

static double lse_of(const struct merge_values *s, int64_t token, int64_t head)
{
    const double x = load_as_f64(s->data, token * s->token_stride + head * s->head_stride, SGK_F32);
    return isinf(x) ? -INFINITY : x;
}

/* A side whose sum is empty counts as zeros, whatever its values are. */
static double weighted(const struct merge_values *v, int64_t at, sgk_dtype t, double weight, double s)
{
    return s == -INFINITY ? 0 : load_as_f64(v->data, at, t) * weight;
}

/* Items are rows. */
void merge_state_ref(const void *args, int64_t begin, int64_t end)
{
    const struct merge_state_args *a = args;
    for (int64_t r = begin; r < end; ++r) {
        const int64_t token = r / a->heads, head = r % a->heads;
        const double  sa = lse_of(&a->s_a, token, head), sb = lse_of(&a->s_b, token, head);
        const bool    empty = sa == -INFINITY && sb == -INFINITY;
        const double  most  = empty ? 0 : fmax(sa, sb);
        const double  pa = a->base2 ? exp2(sa - most) : exp(sa - most), pb = a->base2 ? exp2(sb - most) : exp(sb - most), sum = pa + pb;
        for (int64_t d = 0; d < a->dim; ++d)
            store_f64(a->v_merged.data, token * a->v_merged.token_stride + head * a->v_merged.head_stride + d, a->dtype,
                      weighted(&a->v_a, token * a->v_a.token_stride + head * a->v_a.head_stride + d, a->dtype, pa / sum, sa) +
                          weighted(&a->v_b, token * a->v_b.token_stride + head * a->v_b.head_stride + d, a->dtype, pb / sum, sb));
        store_f64(a->s_merged.data, token * a->s_merged.token_stride + head * a->s_merged.head_stride, SGK_F32,
                  empty ? -INFINITY : (a->base2 ? log2(sum) : log(sum)) + most);
    }
}
