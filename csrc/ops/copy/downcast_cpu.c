/* As downcast_ref.c, in f32: a product of two numbers of 11 bits is exact there. */
#include "copy.h"
#include "cpu/codes.h"

/* t is a constant at every call. */
SGK_INLINE void tokens(sgk_dtype t, const struct downcast_args *a, int64_t begin, int64_t end)
{
    vf inv[2];
    for (int which = 0; which < 2; ++which) inv[which] = vf_rounded(t, vf_div(vf_set(1), vf_rounded(t, vf_set(*a->rows[which].scale))));
    for (int64_t token = begin; token < end; ++token)
        for (int which = 0; which < 2; ++which) {
            const struct downcast_rows *r     = &a->rows[which];
            const int64_t               place = load_index(a->loc, token, a->wide_loc ? SGK_I64 : SGK_I32) * a->mult + a->offset, x = token * r->stride;
            uint8_t                    *out = (uint8_t *)r->out + place * r->out_stride;
            int64_t                     d   = 0;
            for (; d + VF <= a->dim; d += VF) {
                vf_prefetch2(t, r->x, x + r->stride + d);
                codes_store(out + d, codes(SGK_E4M3, CODES_ENDS, vf_rounded(t, vf_mul(vf_load(t, r->x, x + d), inv[which])), vf_zero(), vf_zero()));
            }
            if (d < a->dim) encode(SGK_E4M3, out + d, a->dim - d, vf_rounded(t, vf_mul(vf_load_part(t, r->x, x + d, a->dim - d), inv[which])), -448, 448);
        }
}

void SGK_CPU_FN(downcast)(const void *args, int64_t begin, int64_t end)
{
    const struct downcast_args *a = args;
    if (a->dtype == SGK_F16) tokens(SGK_F16, a, begin, end);
    else tokens(SGK_BF16, a, begin, end);
}
