/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "act.h"
#include "base/convert.h"
#include "cpu/cpu.h"

static double silu(double a) { return a == -INFINITY ? -0.0 : a / (1 + exp(-a)); }

/* Item n is block n % blocks of row n / blocks. */
void silu_and_mul_ref(const void *args, int64_t begin, int64_t end)
{
    const struct silu_and_mul_args *a = args;
    const int64_t blocks = (a->dim + ACT_BLOCK - 1) / ACT_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t in = n / blocks * a->input_stride, out = n / blocks * a->out_stride;
        const int64_t first = n % blocks * ACT_BLOCK, last = first + ACT_BLOCK < a->dim ? first + ACT_BLOCK : a->dim;
        for (int64_t d = first; d < last; ++d)
            store_f64(a->out, out + d, a->dtype,
                      silu(load_as_f64(a->input, in + d, a->dtype)) * load_as_f64(a->input, in + a->dim + d, a->dtype));
    }
}
