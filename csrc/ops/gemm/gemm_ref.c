/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "gemm.h"

/* t is a constant at every call. */
SGK_INLINE void linear_columns(sgk_dtype t, const struct linear_args *a, int64_t first, int64_t last)
{
    for (int64_t m = 0; m < a->rows; ++m)
        for (int64_t n = first; n < last; ++n) {
            double sum = 0;
            for (int64_t k = 0; k < a->depth; ++k)
                sum += load_as_f64(a->input, m * a->input_stride + k, t) * load_as_f64(a->weight, n * a->weight_stride + k, t);
            if (a->bias) sum += load_as_f64(a->bias, n, a->bias_dtype);
            store_f64(a->out, m * a->out_stride + n, a->out_dtype, sum);
        }
}

void linear_ref(const void *args, int64_t begin, int64_t end)
{
    const struct linear_cpu_args *cpu   = args;
    const struct linear_args     *a     = &cpu->a;
    const int64_t                 first = a->columns * begin / cpu->parts, last = a->columns * end / cpu->parts;
    if (a->dtype == SGK_F32) linear_columns(SGK_F32, a, first, last);
    else if (a->dtype == SGK_F16) linear_columns(SGK_F16, a, first, last);
    else linear_columns(SGK_BF16, a, first, last);
}
