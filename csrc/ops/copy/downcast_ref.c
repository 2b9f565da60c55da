/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include "base/convert.h"
#include "copy.h"
#include "cpu/cpu.h"

static double rounded(double x, sgk_dtype dtype)
{
    const float f = f64_to_f32_odd(x);
    return dtype == SGK_F16 ? f16_to_f32(f32_to_f16(f)) : bf16_to_f32(f32_to_bf16(f));
}

void downcast_ref(const void *args, int64_t begin, int64_t end)
{
    const struct downcast_args *a = args;
    for (int64_t t = begin; t < end; ++t)
        for (int which = 0; which < 2; ++which) {
            const struct downcast_rows *r     = &a->rows[which];
            const int64_t               place = load_index(a->loc, t, a->wide_loc ? SGK_I64 : SGK_I32) * a->mult + a->offset;
            const double                inv   = rounded(1 / rounded(*r->scale, a->dtype), a->dtype);
            for (int64_t d = 0; d < a->dim; ++d) {
                const double y                                 = rounded(load_as_f64(r->x, t * r->stride + d, a->dtype) * inv, a->dtype);
                ((uint8_t *)r->out)[place * r->out_stride + d] = isnan(y) ? 0x7f : f32_to_e4m3_sat((float)y);
            }
        }
}
