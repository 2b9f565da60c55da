#include <math.h>
#include "cpu/simd.h"
#include "norm.h"

SGK_INLINE void rmsnorm_rows(sgk_dtype t, const struct rmsnorm_args *a, int64_t begin, int64_t end)
{
    const int64_t dim = a->dim, whole = dim / VF * VF, rest = dim - whole;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t in = i * a->input_stride, out = i * a->output_stride;

        vf sum0 = vf_zero(), sum1 = vf_zero();          /* two chains, so that the multiply-adds overlap */
        int64_t d = 0;
        for (; d + 2 * VF <= dim; d += 2 * VF) {
            const vf x = vf_load(t, a->input, in + d), y = vf_load(t, a->input, in + d + VF);
            sum0 = vf_fma(x, x, sum0);
            sum1 = vf_fma(y, y, sum1);
        }
        for (; d < dim; d += VF) {
            const vf x = d < whole ? vf_load(t, a->input, in + d) : vf_load_part(t, a->input, in + d, rest);
            sum0 = vf_fma(x, x, sum0);
        }

        const vf scale = vf_set(1 / sqrtf(vf_sum(vf_add(sum0, sum1)) / (float)dim + a->eps));
        for (d = 0; d < whole; d += VF)
            vf_store(t, a->output, out + d, vf_mul(vf_mul(vf_load(t, a->input, in + d), scale), vf_load(t, a->weight, d)));
        if (rest)
            vf_store_part(t, a->output, out + d, rest, vf_mul(vf_mul(vf_load_part(t, a->input, in + d, rest), scale), vf_load_part(t, a->weight, d, rest)));
    }
}

/* The unrounded sum is made twice rather than kept: the row is in the first-level cache by then. The second pass writes each
 * element behind itself, so in-place is safe. */
SGK_INLINE void fused_add_rmsnorm_rows(sgk_dtype t, const struct fused_add_rmsnorm_args *a, int64_t begin, int64_t end)
{
    const int64_t dim = a->dim, whole = dim / VF * VF, rest = dim - whole;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t in = i * a->input_stride, res = i * a->residual_stride;

        vf sum0 = vf_zero(), sum1 = vf_zero();
        int64_t d = 0;
        for (; d + 2 * VF <= dim; d += 2 * VF) {
            const vf x = vf_add(vf_load(t, a->input, in + d), vf_load(t, a->residual, res + d));
            const vf y = vf_add(vf_load(t, a->input, in + d + VF), vf_load(t, a->residual, res + d + VF));
            sum0 = vf_fma(x, x, sum0);
            sum1 = vf_fma(y, y, sum1);
        }
        for (; d < dim; d += VF) {
            const vf x = d < whole ? vf_add(vf_load(t, a->input, in + d), vf_load(t, a->residual, res + d))
                                   : vf_add(vf_load_part(t, a->input, in + d, rest), vf_load_part(t, a->residual, res + d, rest));
            sum0 = vf_fma(x, x, sum0);
        }

        const vf scale = vf_set(1 / sqrtf(vf_sum(vf_add(sum0, sum1)) / (float)dim + a->eps));
        for (d = 0; d < whole; d += VF) {
            const vf x = vf_add(vf_load(t, a->input, in + d), vf_load(t, a->residual, res + d));
            vf_store(t, a->residual, res + d, x);
            vf_store(t, a->input, in + d, vf_mul(vf_mul(x, scale), vf_load(t, a->weight, d)));
        }
        if (rest) {
            const vf x = vf_add(vf_load_part(t, a->input, in + d, rest), vf_load_part(t, a->residual, res + d, rest));
            vf_store_part(t, a->residual, res + d, rest, x);
            vf_store_part(t, a->input, in + d, rest, vf_mul(vf_mul(x, scale), vf_load_part(t, a->weight, d, rest)));
        }
    }
}

void SGK_CPU_FN(rmsnorm)(const void *args, int64_t begin, int64_t end)
{
    const struct rmsnorm_args *a = args;
    if (a->dtype == SGK_F32)      rmsnorm_rows(SGK_F32,  a, begin, end);
    else if (a->dtype == SGK_F16) rmsnorm_rows(SGK_F16,  a, begin, end);
    else                          rmsnorm_rows(SGK_BF16, a, begin, end);
}

void SGK_CPU_FN(fused_add_rmsnorm)(const void *args, int64_t begin, int64_t end)
{
    const struct fused_add_rmsnorm_args *a = args;
    if (a->dtype == SGK_F32)      fused_add_rmsnorm_rows(SGK_F32,  a, begin, end);
    else if (a->dtype == SGK_F16) fused_add_rmsnorm_rows(SGK_F16,  a, begin, end);
    else                          fused_add_rmsnorm_rows(SGK_BF16, a, begin, end);
}
