#include <float.h>
#include "act.h"
#include "cpu/simd.h"

/* The clamp keeps -infinity from becoming infinity over infinity; max gives its second operand, so NaN passes. */
SGK_INLINE vf silu(vf a)
{
    a = vf_max(vf_set(-FLT_MAX), a);
    return vf_div(a, vf_add(vf_set(1), vf_exp(vf_sub(vf_zero(), a))));
}

SGK_INLINE void silu_and_mul_blocks(sgk_dtype t, const struct silu_and_mul_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->dim + ACT_BLOCK - 1) / ACT_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t in = n / blocks * a->input_stride, gate = in + a->dim, out = n / blocks * a->out_stride;
        const int64_t first = n % blocks * ACT_BLOCK, last = first + ACT_BLOCK < a->dim ? first + ACT_BLOCK : a->dim;
        int64_t d = first;
        for (; d + VF <= last; d += VF)
            vf_store(t, a->out, out + d, vf_mul(silu(vf_load(t, a->input, in + d)), vf_load(t, a->input, gate + d)));
        if (d < last)
            vf_store_part(t, a->out, out + d, last - d,
                          vf_mul(silu(vf_load_part(t, a->input, in + d, last - d)), vf_load_part(t, a->input, gate + d, last - d)));
    }
}

void SGK_CPU_FN(silu_and_mul)(const void *args, int64_t begin, int64_t end)
{
    const struct silu_and_mul_args *a = args;
    if (a->dtype == SGK_F32)      silu_and_mul_blocks(SGK_F32,  a, begin, end);
    else if (a->dtype == SGK_F16) silu_and_mul_blocks(SGK_F16,  a, begin, end);
    else                          silu_and_mul_blocks(SGK_BF16, a, begin, end);
}
