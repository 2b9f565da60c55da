#include "cpu/simd.h"
#include "moe.h"

SGK_INLINE vf moe_sum_at(sgk_dtype t, const struct moe_sum_args *a, int64_t token, int64_t d, int64_t n)
{
    vf sum = vf_zero();
    for (int64_t j = 0; j < a->terms; ++j) {
        const int64_t term = token * a->terms + j;
        const int64_t row  = a->permutation ? load_index(a->permutation, term, a->wide_permutation ? SGK_I64 : SGK_I32) * a->term_stride
                                            : token * a->token_stride + j * a->term_stride;
        const vf      x    = n == VF ? vf_load(t, a->input, row + d) : vf_load_part(t, a->input, row + d, n);
        sum                = a->factors ? vf_fma(vf_set(load_f32(t, a->factors, term)), x, sum) : vf_add(sum, x);
    }
    return vf_mul(vf_set(a->scale), sum);
}

SGK_INLINE void moe_sum_blocks(sgk_dtype t, const struct moe_sum_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t token = n / blocks, out = token * a->output_stride;
        const int64_t first = n % blocks * MOE_BLOCK, last = first + MOE_BLOCK < a->dim ? first + MOE_BLOCK : a->dim;
        int64_t       d = first;
        for (; d + VF <= last; d += VF) vf_store(t, a->output, out + d, moe_sum_at(t, a, token, d, VF));
        if (d < last) vf_store_part(t, a->output, out + d, last - d, moe_sum_at(t, a, token, d, last - d));
    }
}

void SGK_CPU_FN(moe_sum)(const void *args, int64_t begin, int64_t end)
{
    const struct moe_sum_args *a = args;
    if (a->dtype == SGK_F32) moe_sum_blocks(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) moe_sum_blocks(SGK_F16, a, begin, end);
    else moe_sum_blocks(SGK_BF16, a, begin, end);
}
