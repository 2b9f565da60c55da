/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "norm.h"

void rmsnorm_ref(const void *args, int64_t begin, int64_t end)
{
    const struct rmsnorm_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t in = i * a->input_stride, out = i * a->output_stride;
        double sum = 0;
        for (int64_t d = 0; d < a->dim; ++d) {
            const double x = load_as_f64(a->input, in + d, a->dtype);
            sum += x * x;
        }
        const double scale = 1 / sqrt(sum / (double)a->dim + a->eps);
        for (int64_t d = 0; d < a->dim; ++d)
            store_f64(a->output, out + d, a->dtype,
                      load_as_f64(a->input, in + d, a->dtype) * scale * load_as_f64(a->weight, d, a->dtype));
    }
}

/* The norm is taken of the exact sum; only what is stored to residual is rounded. */
void fused_add_rmsnorm_ref(const void *args, int64_t begin, int64_t end)
{
    const struct fused_add_rmsnorm_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t in = i * a->input_stride, res = i * a->residual_stride;
        double sum = 0;
        for (int64_t d = 0; d < a->dim; ++d) {
            const double x = load_as_f64(a->input, in + d, a->dtype) + load_as_f64(a->residual, res + d, a->dtype);
            sum += x * x;
        }
        const double scale = 1 / sqrt(sum / (double)a->dim + a->eps);
        for (int64_t d = 0; d < a->dim; ++d) {
            const double x = load_as_f64(a->input, in + d, a->dtype) + load_as_f64(a->residual, res + d, a->dtype);
            store_f64(a->residual, res + d, a->dtype, x);
            store_f64(a->input, in + d, a->dtype, x * scale * load_as_f64(a->weight, d, a->dtype));
        }
    }
}
