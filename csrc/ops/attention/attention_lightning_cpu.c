#include <math.h>
#include "attention_lightning.h"
#include "cpu/simd.h"

/* VF columns of the state at a time, all its rows. */
SGK_INLINE void columns(sgk_dtype t, const struct lightning_args *a, int64_t i, int32_t e, int32_t n, vf decay)
{
    const vf v   = n == VF ? vf_load(t, a->v, i * a->dim_v + e) : vf_load_part(t, a->v, i * a->dim_v + e, n);
    vf       sum = vf_zero();
    for (int32_t d = 0; d < a->dim; ++d) {
        const int64_t at   = (i * a->dim + d) * a->dim_v + e;
        const vf      past = n == VF ? vf_load_f32(a->past_kv + at) : vf_load_part(SGK_F32, a->past_kv, at, n);
        const vf      kv   = vf_fma(decay, past, vf_mul(vf_set(load_f32(t, a->k, i * a->dim + d)), v));
        if (n == VF) vf_store_f32(a->new_kv + at, kv);
        else vf_store_part(SGK_F32, a->new_kv, at, n, kv);
        sum = vf_fma(vf_set(load_f32(t, a->q, i * a->dim + d)), kv, sum);
    }
    if (n == VF) vf_store(t, a->output, i * a->dim_v + e, sum);
    else vf_store_part(t, a->output, i * a->dim_v + e, n, sum);
}

SGK_INLINE void heads_of(sgk_dtype t, const struct lightning_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) {
        const vf decay = vf_set(expf(-a->slope[i % a->heads]));
        int32_t  e     = 0;
        for (; e + VF <= a->dim_v; e += VF) columns(t, a, i, e, VF, decay);
        if (e < a->dim_v) columns(t, a, i, e, a->dim_v - e, decay);
    }
}

void SGK_CPU_FN(lightning)(const void *args, int64_t begin, int64_t end)
{
    const struct lightning_args *a = args;
    if (a->dtype == SGK_F32) heads_of(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) heads_of(SGK_F16, a, begin, end);
    else heads_of(SGK_BF16, a, begin, end);
}
