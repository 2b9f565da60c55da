/* As downcast_ref.c, in f32: a product of two numbers of 11 bits is exact there. */
#include "copy.h"
#include "cpu/codes.h"

/* t is a constant at every call. */
SGK_INLINE void tokens(sgk_dtype t, const struct downcast_args *a, int64_t begin, int64_t end)
{
    for (int64_t token = begin; token < end; ++token)
        for (int which = 0; which < 2; ++which) {
            const struct downcast_rows *r     = &a->rows[which];
            const int64_t               place = load_index(a->loc, token, a->wide_loc ? SGK_I64 : SGK_I32) * a->mult + a->offset;
            const vf                    inv   = vf_rounded(t, vf_div(vf_set(1), vf_rounded(t, vf_set(*r->scale))));
            uint8_t                    *out   = (uint8_t *)r->out + place * r->out_stride;
            for (int64_t d = 0; d < a->dim; d += VF) {
                const int64_t n = a->dim - d < VF ? a->dim - d : VF, at = token * r->stride + d;
                const vf      x = n == VF ? vf_load(t, r->x, at) : vf_load_part(t, r->x, at, n);
                encode(SGK_E4M3, out + d, n, vf_rounded(t, vf_mul(x, inv)), -448, 448);
            }
        }
}

void SGK_CPU_FN(downcast)(const void *args, int64_t begin, int64_t end)
{
    const struct downcast_args *a = args;
    if (a->dtype == SGK_F16) tokens(SGK_F16, a, begin, end);
    else tokens(SGK_BF16, a, begin, end);
}
